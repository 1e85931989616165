"""Networks drawn at random: what they lose is lost exactly, and what cannot be followed keeps its width."""

from functools import partial
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lpslim
from tests.pruning.test_any_network import EXACT, By, Net, conv, fc, zeros

IMAGE = torch.zeros(1, 3, 4, 4, dtype=torch.float64)


def gated(net, x):
    return x * net.up(net.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


def on_last_axis(net, x):
    return net.layer(x.transpose(1, 3)).transpose(1, 3)


def by_halves(x):
    a, b = x.chunk(2, 1)
    return a * b.tanh()


# width -> a part that reads so many channels, and the width that it makes
PARTS = {
    "convolution": lambda w: (conv(w, 8), 8),
    "transposed": lambda w: (nn.ConvTranspose2d(w, 8, 3, padding=1), 8),
    "depthwise": lambda w: (conv(w, w, groups=w), w),
    "grouped": lambda w: (nn.Sequential(conv(w, 8), conv(8, 8, groups=4)), 8),
    "batch norm": lambda w: (nn.BatchNorm2d(w), w),
    "group norm": lambda w: (nn.GroupNorm(1, w), w),
    "layer norm": lambda w: (Net(on_last_axis, layer=nn.LayerNorm(w)), w),
    "linear": lambda w: (Net(on_last_axis, layer=fc(w, 8)), 8),
    "relu": lambda w: (nn.ReLU(), w),
    "sum": lambda w: (Net(lambda net, x: x + net.c(x), c=conv(w, w)), w),
    "stack": lambda w: (Net(lambda net, x: torch.stack([x, net.c(x)]).sum(0), c=conv(w, w)), w),
    "product": lambda w: (Net(lambda net, x: x * net.c(x), c=conv(w, w)), w),
    "maximum": lambda w: (Net(lambda net, x: torch.maximum(x, net.c(x)), c=conv(w, w)), w),
    "side by side": lambda w: (Net(lambda net, x: torch.cat([x, net.c(x), x], 1), c=conv(w, 4)), 2 * w + 4),
    "gate": lambda w: (Net(gated, down=conv(w, 4, 1), up=conv(4, w, 1)), w),
    "halves": lambda w: (nn.Sequential(conv(w, 12), By(by_halves)), 6),
    "gated halves": lambda w: (nn.Sequential(conv(w, 12), nn.GLU(1)), 6),
    "pixels": lambda w: (nn.Sequential(conv(w, 16), nn.PixelShuffle(2), nn.MaxPool2d(2)), 4),
    "shuffle": lambda w: (nn.Sequential(conv(w, 8), nn.ChannelShuffle(2)), 8),
    "more channels": lambda w: (By(lambda x: F.pad(x, (0, 0, 0, 0, 1, 2))), w + 3),
    "turned": lambda w: (By(lambda x: x.flip(1)), w),
    "centred": lambda w: (By(lambda x: x - x.mean(1, keepdim=True)), w),
    "flat and back": lambda w: (By(lambda x: x.flatten(2).unflatten(2, (4, 4))), w),
}


def chain(net, x):
    *parts, last = net.children()
    for part in parts:
        x = part(x)
    return last(x.mean((2, 3)))


def outputs(network, inputs, training):
    network.train(training)
    with torch.no_grad():
        return network(inputs)


@given(st.lists(st.sampled_from(list(PARTS)), min_size=2, max_size=6), st.booleans())
@settings(max_examples=20)
def test_a_random_network_loses_channels_exactly_and_loads_as_it_was(names, coupled):
    parts, width = {"first": conv(3, 8)}, 8
    for number, name in enumerate(names):
        parts[f"{number}"], width = PARTS[name](width)
    model = Net(chain, **parts, a=conv(width, 8), relu=nn.ReLU(), b=conv(8, 6), f=fc(6, 4)).double()
    pruned = lpslim.prune(model, IMAGE, ratio=0.4, coupled=coupled)
    assert {"a", "b"} <= pruned.kept.keys()
    assert pruned.pruned.params == sum(parameter.numel() for parameter in pruned.model.parameters())
    inputs = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    with TemporaryDirectory() as folder:
        lpslim.save(f"{folder}/network", pruned)
        loaded = lpslim.load(f"{folder}/network", model)
    assert torch.equal(outputs(loaded, inputs, False), outputs(pruned.model, inputs, False))
    for unit in pruned.units:
        gone = {*range(unit.size)} - {*pruned.kept[unit.layer]}
        for cut in unit.without(gone):
            if cut.reads:
                hook = partial(zeros, torch.tensor(cut.indices))
                model.get_submodule(cut.name).register_forward_pre_hook(hook, with_kwargs=True)
    for training in (False, True):
        expected = outputs(model, inputs, training)
        torch.testing.assert_close(outputs(pruned.model, inputs, training), expected, rtol=EXACT, atol=EXACT)
