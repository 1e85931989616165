"""Networks of one's own: pruned exactly, or left alone or refused with the reason. Nothing in between."""

import copy
import random
from collections import UserDict
from dataclasses import dataclass
from functools import partial
from threading import Lock
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.parametrizations as P
from torch import nn
from torch.ao.quantization import get_default_qat_qconfig, prepare_qat
from torch.nn.utils.prune import l1_unstructured

import lpslim
from lpslim.base.errors import UserError
from lpslim.pruning.check import Comparison
from lpslim.pruning.cost import count
from tests.pruning.test_cost import counted_by_torch

IMAGE = torch.zeros(1, 3, 8, 8)
EXACT = 1e-12
fc = nn.Linear


class Net(nn.Module):
    """Layers by name with drawn parameters, and a function of them and the inputs."""

    def __init__(self, function, **layers):
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)
        for name, tensor in (*self.named_parameters(), *self.named_buffers()):
            if tensor.is_floating_point() and not name.endswith(("_u", "_v")):
                nn.init.uniform_(tensor, 0.1, 1) if "running" in name else nn.init.normal_(tensor, 0.2, 0.5)

    def forward(self, *inputs, **named):
        return self.function(self, *inputs, **named)


def conv(inputs, outputs, size=3, **options):
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **options)


def between(middle, training=None):
    """Return a network whose first convolution's channels pass through something before they are read."""

    def function(net, x):
        y = net.a(x)
        y = training(net, y) if training and net.training else net.middle(y)
        return net.f(net.b(y.relu()).relu().mean((2, 3)))

    return Net(function, a=conv(3, 8), middle=middle, b=conv(8, 6), f=fc(6, 4))


class By(nn.Module):
    """A function of a feature map, and of a parameter or buffer where there is one."""

    def __init__(self, function, *shape, kind=nn.Parameter):
        super().__init__()
        self.function = function
        self.value = kind(torch.ones(shape)) if shape else None

    def forward(self, x):
        return self.function(x) if self.value is None else self.function(x, self.value)


class Scaled(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight / self.in_channels, self.bias, padding=1)


def keeping(net, x):
    """Leave features on the network, by themselves and in a list."""
    net.features = net.a(x).relu()
    net.more = [net.b(net.features).relu()]
    return net.f(net.more[0].mean((2, 3)))


def hard_swish(x):
    return (x + 1e-3) * F.relu6(x + 3) / 6


# what is between two convolutions; words of the reason why the first keeps its width, none where it does not
BETWEEN = {
    "nothing": (nn.Identity, ""),
    "2 groups": (lambda: nn.GroupNorm(2, 8), "differ"),
    "a group per channel": (lambda: nn.GroupNorm(8, 8), ""),
    "1 group": (lambda: nn.GroupNorm(1, 8), "differ"),
    "layer": (lambda: By(lambda x: F.layer_norm(x.transpose(1, 3), x.shape[1:2]).transpose(1, 3)), "differ"),
    "softmax": (nn.Softmax2d, "differ"),
    "instance norm": (lambda: nn.InstanceNorm2d(8, affine=True), ""),
    "its statistics": (lambda: nn.InstanceNorm2d(8, track_running_stats=True), "evaluation fails"),
    "batch norm without scale": (lambda: nn.BatchNorm2d(8, affine=False), ""),
    "shuffled": (lambda: By(lambda x: x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)), "differ"),
    "flip": (lambda: By(lambda x: x.flip(1)), "differ"),
    "roll": (lambda: By(lambda x: x.roll(1, 1)), "differ"),
    "constant index": (lambda: By(lambda x: x[:, [3, 1, 2, 0, 7, 6, 5, 4]]), "fails"),
    "width": (lambda: By(lambda x: x / x.shape[1] ** 0.5), "differ"),
    "branch on width": (lambda: By(lambda x: x * 2 if x.shape[1] == 8 else x), "differ"),
    "sum over channels": (lambda: By(lambda x: x * x.sum(1, keepdim=True).sigmoid()), "differ"),
    "scale": (lambda: By(torch.mul, 1, 8, 1, 1), ""),
    "scale as a buffer": (lambda: By(torch.mul, 1, 8, 1, 1, kind=nn.Buffer), "fails"),
    "map as wide": (lambda: By(torch.mul, 8, 8), "fails"),
    "map of channels": (lambda: By(torch.mul, 1, 8, 8, 8), "fails"),
    "matrix": (lambda: By(lambda x, m: torch.einsum("bchw,cd->bdhw", x, m), 8, 8), "fails"),
    "no gradient": (lambda: By(torch.detach), "nothing calls it by itself, or"),
    "dropout": (lambda: nn.Dropout(0.9), ""),
    "depthwise": (lambda: conv(8, 8, groups=8), ""),
}  # fmt: skip


def silenced(model, pruned):
    """Return a copy in which every layer that reads a removed channel reads zero there."""
    model = copy.deepcopy(model)
    for unit in pruned.units:
        gone = torch.ones(unit.groups, unit.size, dtype=torch.bool)
        gone[:, pruned.kept[unit.layer]] = False
        hook = partial(zeros, gone.flatten().nonzero().flatten())
        for name in unit.consumers:
            model.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True)
    return model


def zeros(index, layer, inputs, named):
    """Return a layer's inputs with zeros in these channels."""
    axis = -1 - len(getattr(layer, "kernel_size", ()))
    first, *others = (*inputs, *named.values())
    return (first.index_fill(axis, index, 0), *others), {}


def draw(example):
    return torch.randn(2, *example.shape[1:], generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def assert_exact(model, pruned, *inputs):
    """Assert that both networks compute the same, in evaluation and in training mode."""
    reference, smaller = silenced(model, pruned), copy.deepcopy(pruned.model)
    for training in (False, True):
        for network in (reference, smaller):
            for module in network.modules():
                module.training = training and not isinstance(module, nn.Dropout)
        expected, computed = reference(*inputs), smaller(*inputs)
        assert (computed - expected).abs().max() <= EXACT * expected.abs().max()
    assert pruned.pruned == count(pruned.model, pruned.example)
    assert pruned.pruned.params == sum(parameter.numel() for parameter in pruned.model.parameters())


@pytest.mark.parametrize(("middle", "reason"), BETWEEN.values(), ids=BETWEEN.keys())
def test_what_channels_pass_through(middle, reason):
    model = between(middle()).double()
    before, random_state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    pruned = lpslim.prune(model, IMAGE.double(), ratio=0.5)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert_exact(model, pruned, draw(IMAGE))
    assert reason in pruned.left_alone.get("a", "")
    assert ("a" in pruned.kept) == (not reason)
    assert 1 <= len(pruned.kept["b"]) < 6
    if reason:
        assert f"left alone: a: {pruned.left_alone['a']}" in str(pruned).splitlines()
        with pytest.raises(UserError, match=r"no layer can lose channels.*\n  a: "):
            lpslim.prune(model, IMAGE.double(), ratio=0.5, protected=["b"])


# what regroups channels between two convolutions, their widths there, the least that goes at a time, coupled
REGROUPED = {
    "gated halves": (nn.GLU(1), 16, 8, 2, False),
    "gated halves, axis -1": (By(lambda x: F.glu(x.transpose(1, 3)).transpose(1, 3)), 16, 8, 2, False),
    "pixels shuffled": (nn.PixelShuffle(2), 16, 4, 4, False),
    "pixels gathered": (nn.PixelUnshuffle(2), 8, 32, 1, False),
    "channels shuffled": (nn.ChannelShuffle(2), 8, 8, 2, False),
    "cropped": (By(lambda x: F.pad(x, (0, 0, 0, 0, -2, 1))), 8, 7, 1, True),
}


@pytest.mark.parametrize(
    ("middle", "made", "read", "together", "coupled"), REGROUPED.values(), ids=REGROUPED.keys()
)
def test_channels_that_are_regrouped(middle, made, read, together, coupled, tmp_path):
    model = Net(chain, a=conv(3, made), middle=middle, b=conv(read, 6), f=fc(6, 4)).double()
    example = IMAGE.double()
    pruned = lpslim.prune(model, example, ratio=0.4, protected="b", coupled=coupled)
    stays = (model.a.weight[:, None] == pruned.model.a.weight).flatten(2).all(2).any(1)
    assert 0 < (~stays).sum() < made
    assert (~stays).sum() % together == 0
    zeroed = copy.deepcopy(model).eval()
    with torch.no_grad():
        zeroed.a.weight[~stays] = 0
        zeroed.a.bias[~stays] = 0
    inputs = draw(example)
    torch.testing.assert_close(pruned.model.eval()(inputs), zeroed(inputs), rtol=EXACT, atol=EXACT)
    lpslim.save(tmp_path / "network", pruned)
    loaded = lpslim.load(tmp_path / "network", model)
    torch.testing.assert_close(loaded(inputs), pruned.model(inputs), rtol=0, atol=0)


def test_what_training_draws_by_numpy_or_python():
    model = between(nn.Identity(), training=lambda _, y: y * np.random.rand() + random.random()).double()
    states = random.getstate(), np.random.get_state()
    pruned = lpslim.prune(model, IMAGE.double(), ratio=0.5)
    assert pruned.kept["a"]
    assert not pruned.left_alone
    assert random.getstate() == states[0]
    np.testing.assert_equal(np.random.get_state(), states[1])


def test_what_only_training_calls():
    model = between(nn.Identity(), training=lambda net, y: net.norm(y))
    model.norm = nn.BatchNorm2d(8)
    pruned = lpslim.prune(model, IMAGE, ratio=0.5)
    assert "training fails" in pruned.left_alone.pop("a")
    assert not pruned.left_alone
    pruned.model.train()(torch.randn(2, 3, 8, 8))


def test_layers_of_other_types_keep_their_width():
    def function(net, x):
        y = net.a(x).relu().mean((2, 3))
        return net.f(net.other(y, y).relu())

    model = Net(function, a=conv(3, 8), other=nn.Bilinear(8, 8, 6), f=fc(6, 4))
    with pytest.raises(UserError, match=r"no layer can lose channels.*(\n.*)*\n  other: Bilinear is none of"):
        lpslim.prune(model, IMAGE, ratio=0.5)


def test_without_the_check_it_is_the_users_risk():
    pruned = lpslim.prune(between(nn.GroupNorm(4, 8)), IMAGE, target_params=0.4, round_to=2, check=False)
    with pytest.raises(RuntimeError, match="divisible"):
        pruned.model(IMAGE)


def attention(net, x):
    """Two heads by hand, residual streams around them and around an MLP."""
    tokens = net.patch(x).flatten(2).mT
    q, k, v = (layer(tokens).unflatten(-1, (2, -1)).transpose(1, 2) for layer in (net.q, net.k, net.v))
    tokens = tokens + net.o(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))
    return net.head((tokens + net.down(F.gelu(net.up(tokens)))).mean(1))


def chain(net, x):
    for layer in list(net.children())[:-1]:
        x = layer(x).relu()
    return list(net.children())[-1](x.mean(tuple(range(2, x.ndim))) if x.ndim > 2 else x)


# network, example, layers that lose units, layers that are left alone with words of the reason
WHOLE = {
    "attention": (lambda: Net(attention, patch=nn.Conv2d(3, 8, 2, 2), **{k: fc(8, 8) for k in "qkvo"},
                              up=fc(8, 16), down=fc(16, 8), head=fc(8, 4)), IMAGE, {"up"},
                  {"q": "differ", "patch": "those of 'o': coupled=True", "o": "'patch'", "down": "'patch'"}),
    "functional": (lambda: Net(lambda net, x: net.f(net.up(net.m(*[net.a(x).flatten(2).mT] * 3)[0]).mean(1)),
                               a=nn.Conv2d(3, 8, 2, 2), m=nn.MultiheadAttention(8, 2, batch_first=True),
                               up=fc(8, 16), f=fc(16, 4)), IMAGE, {"up"},
                   {"a": "differ", "m.out_proj": "nothing calls it"}),
    "detached": (lambda: Net(lambda net, x: net.f((net.b(y := net.a(x)) * net.c(y.detach())).mean((2, 3))),
                             a=conv(3, 8), b=conv(8, 6), c=conv(8, 6), f=fc(6, 4)),
                 IMAGE, {"b"}, {"a": "fails"}),
    "gate of one": (lambda: Net(lambda net, x: net.f(net.b((y := net.a(x)) * net.m(y)).mean((2, 3))),
                                a=conv(3, 8), m=conv(8, 1), b=conv(8, 6), f=fc(6, 4)), IMAGE, {"a", "b"}, {}),
    "width in a layer": (lambda: Net(chain, a=conv(3, 8), b=Scaled(8, 6, 3), c=conv(6, 5), f=fc(5, 4)),
        IMAGE, {"b", "c"}, {"a": "differ"}),
    "features": (lambda: Net(lambda net, x: ((y := net.a(x)), net.f(net.c(net.b(y).relu()).mean((2, 3)))),
                             a=conv(3, 8), b=conv(8, 6), c=conv(6, 5), f=fc(5, 4)),
                 IMAGE, {"b", "c"}, {"a": "outputs would be"}),
    "groups of 2, then 4": (lambda: Net(chain, a=conv(3, 8), d=conv(8, 8, groups=2), e=conv(8, 8, groups=4),
                                        f=fc(8, 4)), IMAGE, {"a", "d", "e"}, {}),
    "not called": (lambda: Net(lambda net, x: net.f(net.a(x).relu().mean((2, 3))), a=conv(3, 8), f=fc(8, 4),
                               old=fc(6, 2)), IMAGE, {"a"}, {"old": "nothing calls it"}),
    "sequences": (lambda: Net(chain, a=nn.Conv1d(3, 8, 3), b=nn.Conv1d(8, 6, 3), f=fc(6, 4)),
                  torch.zeros(1, 3, 16), {"a", "b"}, {}),
    "volumes": (lambda: Net(chain, a=nn.Conv3d(3, 8, 3), b=nn.Conv3d(8, 6, 1), f=fc(6, 4)),
                torch.zeros(1, 3, 4, 8, 8), {"a", "b"}, {}),
    "vectors": (lambda: Net(chain, a=fc(10, 8), b=fc(8, 6), f=fc(6, 4)), torch.zeros(1, 10), {"a", "b"}, {}),
    "GRU": (lambda: Net(lambda net, x: net.g(net.f(net.r(net.a(x).mean(2).mT)[0][:, -1]).relu()),
                        a=conv(3, 8), r=nn.GRU(8, 6, batch_first=True), f=fc(6, 5), g=fc(5, 4)),
            IMAGE, {"f"}, {"a": "cannot be followed"}),
    "weight norm": (lambda: Net(chain, a=P.weight_norm(conv(3, 8)), b=conv(8, 6), f=fc(6, 4)),
        IMAGE, {"b"}, {"a": "remove_parametrizations"}),
    "features kept": (lambda: Net(keeping, a=conv(3, 8), b=conv(8, 6), f=fc(6, 4)), IMAGE, {"a", "b"}, {}),
    "numbers added": (lambda: Net(lambda net, x: net.f(net.b(hard_swish(net.a(x))).relu().mean((2, 3))),
                                  a=conv(3, 8), b=conv(8, 6), f=fc(6, 4)), IMAGE, {"a", "b"}, {}),
    "by keyword": (lambda: Net(lambda net, x: net.f(input=net.b(input=net.a(x).relu()).relu().mean((2, 3))),
                               a=conv(3, 8), b=conv(8, 6), f=fc(6, 4)), IMAGE, {"a", "b"}, {}),
    "spectral norm": (lambda: Net(chain, a=P.spectral_norm(conv(3, 8)), b=conv(8, 6), f=fc(6, 4)),
        IMAGE, {"b"}, {"a": "is computed"}),
}  # fmt: skip


@pytest.mark.parametrize(("build", "example", "layers", "left"), WHOLE.values(), ids=WHOLE.keys())
def test_whole_networks(build, example, layers, left, tmp_path):
    model, example = build().double(), example.double()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    pruned = lpslim.prune(model, example, ratio=0.4)
    assert set(pruned.kept) == layers
    assert pruned.left_alone.keys() == left.keys()
    assert all(words in pruned.left_alone[layer] for layer, words in left.items())
    for name, buffer in pruned.model.named_buffers():  # such as u and v of a spectral norm
        assert torch.equal(buffer, buffers[name])
    pruned.model.eval()
    if build is not WHOLE["features"][0]:
        assert_exact(model, pruned, draw(example))
    lpslim.save(tmp_path / "network", pruned)
    loaded = lpslim.load(tmp_path / "network", model)
    torch.testing.assert_close(loaded(example), pruned.model(example), rtol=0, atol=0)


@dataclass(frozen=True)
class Output:
    logits: torch.Tensor
    loss: torch.Tensor | None = None


@pytest.mark.parametrize(
    "form", [lambda y: (y, None), lambda y: {"logits": y, "name": "x", "n": 3}, lambda y: [y, [y]], Output]
)
def test_outputs_of_any_form_are_compared(form):
    layers = {"a": conv(3, 8), "b": conv(8, 6), "f": fc(6, 4)}
    model = Net(lambda net, x: form(net.f(net.b(net.a(x).relu()).relu().mean((2, 3)))), **layers)
    pruned = lpslim.prune(model, IMAGE, ratio=0.4)
    assert (pruned.kept.keys(), pruned.checked) == ({"a", "b"}, ("evaluation", "training"))


def test_a_network_that_has_just_trained_is_copied_without_what_it_keeps(tmp_path):
    model = Net(keeping, a=conv(3, 8), b=conv(8, 6), f=fc(6, 4))
    model(IMAGE + 1).sum().backward()
    features = model.features
    pruned = lpslim.prune(model, IMAGE, ratio=0.4)
    assert model.features is features
    copy.deepcopy(pruned.model)
    lpslim.save(tmp_path / "network", pruned)
    lpslim.load(tmp_path / "network", model=model)


@pytest.mark.parametrize("form", [tuple, dict, UserDict])
def test_two_inputs(form, tmp_path):
    model = Net(lambda net, x, key: net.g(net.b(net.a(x) * net.k(key)[..., None, None]).relu().mean((2, 3))),
                a=conv(3, 8), k=fc(5, 8), b=conv(8, 6), g=fc(6, 4)).double().eval()  # fmt: skip
    inputs = draw(IMAGE), draw(torch.zeros(1, 5))
    example = tuple(value[:1] for value in inputs)
    given = example if form is tuple else form(zip(("x", "key"), example, strict=True))
    pruned = lpslim.prune(model, given, ratio=0.5)
    assert pruned.kept.keys() == {"a", "b"}
    assert_exact(model, pruned, *inputs)
    batches = [(given, torch.tensor([1]))]
    for criterion in ("taylor", "chip"):
        assert lpslim.prune(model, given, ratio=0.5, criterion=criterion, batches=batches).kept != pruned.kept
    lpslim.save(tmp_path / "network", pruned)
    assert torch.equal(lpslim.load(tmp_path / "network", model)(*inputs), pruned.model(*inputs))
    lpslim.ChannelADMM(model, given, ratio=0.5, epochs=1)


def patches(net, x):
    """Fold the patches of an image into the batch."""
    x = F.unfold(x, 4, stride=4).unflatten(1, (3, 4, 4)).movedim(-1, 1).flatten(0, 1)
    return net.f(net.b(net.a(x).relu()).relu().mean((2, 3))).relu().mean(0)


COUNTED = {
    "transposed": lambda: Net(chain, a=conv(3, 16), t=nn.ConvTranspose2d(16, 8, 4, 2), b=conv(8, 24),
                              f=fc(24, 4)),
    "patches": lambda: Net(patches, a=conv(3, 16), b=conv(16, 16), f=fc(16, 4)),
    "sequence first": lambda: Net(lambda net, x: net.g(net.f(net.a(x).flatten(2).permute(2, 0, 1)).mean(0)),
                                  a=nn.Conv2d(3, 16, 4, 4), f=fc(16, 64), g=fc(64, 4)),
    "loose scale": lambda: between(By(torch.mul, 1, 8, 1, 1)),
}  # fmt: skip


PAIRS = [*zip(COUNTED.values(), ["target_flops", "target_params"] * 2, strict=True)]


@pytest.mark.parametrize(("build", "target"), PAIRS, ids=COUNTED.keys())
def test_targets_are_met_by_what_is_really_there(build, target):
    model = build().eval()
    pruned = lpslim.prune(model, IMAGE, round_to=2, **{target: 0.4})
    both = (model, pruned.model)
    sizes = [(counted_by_torch(net, IMAGE), sum(p.numel() for p in net.parameters())) for net in both]
    assert sizes == [(cost.macs, cost.params) for cost in (pruned.dense, pruned.pruned)]
    before, after = (size[target == "target_params"] for size in sizes)
    assert pruned.reached == 1 - after / before == pytest.approx(0.4, abs=0.1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_precision(dtype, tmp_path):
    model, image = between(nn.BatchNorm2d(8)).to(dtype).eval(), IMAGE.to(dtype)
    pruned = lpslim.prune(model, image, ratio=0.5)
    assert pruned.kept.keys() == {"a", "b"}
    lpslim.save(tmp_path / "network", pruned)
    assert torch.equal(lpslim.load(tmp_path / "network", model)(image), pruned.model(image))


def test_a_network_of_a_fixed_precision_is_compared_in_it():
    model = between(By(lambda x: x.float()))  # then a layer in float64 cannot read it
    comparison = Comparison(model, IMAGE)
    assert comparison.tolerance == torch.finfo(torch.float32).eps ** 0.5
    assert lpslim.prune(model, IMAGE, ratio=0.5).kept.keys() == {"a", "b"}


def no_number(module):
    if isinstance(module, nn.Conv2d):
        module.weight.data.fill_(torch.nan)


def no_statistics(module):
    if isinstance(module, nn.BatchNorm2d):
        module.running_var.fill_(torch.nan)


def locked():
    model = between(nn.Identity())
    model.lock = Lock()
    return model


def closing():
    model = between(nn.BatchNorm2d(8))
    norm = model.middle
    model.function = lambda net, x: net.f(net.b(norm(net.a(x)).relu()).relu().mean((2, 3)))
    return model


def closing_in_training():
    norm, model = nn.BatchNorm2d(8), between(nn.Identity(), training=lambda net, y: norm(y))
    model.norm = norm
    return model


def inferring():
    with torch.inference_mode():
        return between(nn.Identity())


def quantising():
    model = between(nn.Identity()).train()
    model.qconfig = get_default_qat_qconfig("fbgemm")
    prepared = prepare_qat(model)
    prepared(torch.randn(2, 3, 8, 8))  # measures the range of every channel
    return prepared


REFUSED = {
    "quantising": (quantising, r"no layer can lose channels(.|\n)*\n  a: .*scale and zero-point"),
    "masks": (lambda: between(l1_unstructured(conv(8, 8), "weight", 1)), r"cannot be copied .*prune\.rem"),
    "NaN": (lambda: between(nn.Identity()).apply(no_number), r"a\.weight: has values that are not finite"),
    "NaN in a buffer": (lambda: between(nn.BatchNorm2d(8)).apply(no_statistics),
                        r"middle\.running_var: has values that are NaN"),
    "no values yet": (lambda: nn.Sequential(nn.LazyConv2d(8, 3)), r"0\.weight: has no values yet"),
    "on meta": (lambda: between(nn.Identity()).to("meta"), r"a\.weight: has no values yet"),
    "a lock": (locked, r"cannot be copied \(cannot pickle .*lock"),
    "a closure": (closing, "Net: a function that it holds calls its modules"),
    "a closure in training": (closing_in_training, "Net: a function that it holds calls its modules"),
    "no statistics yet": (lambda: nn.Sequential(conv(3, 8), nn.LazyBatchNorm2d(affine=False)),
                          r"1\.running_mean: has no values yet"),
    "inference": (inferring, r"torch\.inference_mode\(\).*outside"),
    "script": (lambda: torch.jit.script(conv(3, 8)), "a script cannot be cut"),
    "one input of two": (lambda: Net(lambda net, x, y: net.a(x) + y), "cannot follow.*'y'"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("build", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(build, message):
    model = build()
    with pytest.raises(UserError, match=message):
        lpslim.prune(model, IMAGE, ratio=0.5)


@pytest.mark.parametrize(("copies", "dtype"), [(1, torch.float64), (0.5, torch.float32)])
def test_copies_that_fit_into_memory_are_compared_and_others_refused(copies, dtype, monkeypatch):
    net = between(nn.Identity())
    size = sum(p.numel() for p in net.parameters())

    def have(free):
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free))

    have(copies * 3 * 8 * size)
    assert Comparison(net, IMAGE).tolerance == torch.finfo(dtype).eps ** 0.5
    have(3 * 4 * size - 1)
    with pytest.raises(UserError, match=rf"Net: of its {size:,} parameters, 3 copies .* check=False skips"):
        lpslim.prune(net, IMAGE, ratio=0.5)
    assert lpslim.prune(net, IMAGE, ratio=0.5, check=False).checked == ()
