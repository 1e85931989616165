"""A pruned network computes what the whole one does with the removed channels silenced."""

import copy

import pytest
import torch
import torchvision
from torch import nn

from lpslim.base.errors import UserError
from lpslim.models import family as families
from lpslim.pruning import graph
from lpslim.pruning.budget import candidates
from lpslim.pruning.cost import count
from lpslim.pruning.units import Prunable
from tests.conftest import unsettle
from tests.pruning import test_any_network

IMAGE = torch.zeros(1, 3, 4, 4, dtype=torch.float64)


def silenced(model, units, kept):
    """Return a copy of full width in which the removed channels are zero wherever they are made."""
    model = copy.deepcopy(model)
    for unit in units:
        gone = torch.ones(unit.groups, unit.size, dtype=torch.bool)
        gone[:, kept[unit.layer]] = False
        for name in unit.producers:
            module = model.get_submodule(name)
            for tensor in (module.weight, module.bias) if not isinstance(module, nn.PReLU) else ():
                if tensor is not None:
                    tensor.data[gone.flatten()] = 0
    return model


def output_and_gradient(model, images):
    """Return the outputs, and the gradient with respect to the images of an arbitrary mix of them."""
    images = images.clone().requires_grad_()
    outputs = model(images)
    mix = torch.linspace(-1, 1, outputs.numel(), dtype=outputs.dtype).view_as(outputs)
    (gradient,) = torch.autograd.grad((outputs * mix).sum(), images)
    return outputs.detach(), gradient


def assert_pruned_equals_silenced(model, units, kept, images):
    reference, whole = silenced(model, units, kept), model(images).detach()
    graph.prune(model, images[:1], kept)
    pairs = zip(output_and_gradient(model, images), output_and_gradient(reference, images), strict=True)
    for outcome, expected in pairs:
        scale = expected.abs().max().item()
        assert scale > 0  # two dead networks would agree as well
        # deep in a random network gradients are small: the error is measured against them
        torch.testing.assert_close(outcome / scale, expected / scale, rtol=0, atol=1e-9)
    assert (model(images) - whole).abs().max() > 1e-6  # the choice did remove something that counts
    for unit in units:
        assert model.get_submodule(unit.layer).weight.shape[0] == len(kept[unit.layer]) * unit.groups


def draw(*shape):
    return torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


OURS = [
    ("vgg", "vgg_small", (1, 8, 8)), ("resnet_cifar", "resnet20", (3, 32, 32)),
    ("torchvision", "resnet18", (3, 64, 64)), ("torchvision", "resnet50", (3, 64, 64)),
]  # fmt: skip


@pytest.mark.parametrize(("family", "name", "shape"), OURS, ids=[name for _, name, _ in OURS])
def test_our_networks_are_pruned_exactly(network, random_kept, family, name, shape):
    model, images = network(family, name, shape).double(), draw(*shape)
    units = families.get(family).units(model, images[:1])
    assert_pruned_equals_silenced(model, units, random_kept(units, seed=1), images)


# prunable layers; a layer that keeps its width, and why
FOREIGN = {
    "densenet121": (58, "features.denseblock1.denselayer1.conv2"),  # concatenated
    "mobilenet_v2": (20, "features.2.conv.2"),  # on the residual stream; the depthwise ones go along
    "regnet_y_400mf": (49, "trunk_output.block1.block1-0.f.c.0"),  # convolutions in groups, gates
    "convnext_tiny": (18, "features.1.0.block.0"),  # linear layers on the last axis
    "squeezenet1_1": (9, "features.3.expand1x1"),  # no batch-norm
    "mobilenet_v3_small": (23, "features.2.block.2.0"),  # hard swish, gates
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_found_in_foreign_networks_is_removed_exactly(name, random_kept):
    torch.manual_seed(0)
    model = unsettle(torchvision.models.get_model(name, weights=None, num_classes=7)).double().eval()
    images, (layers, stream) = draw(3, 64, 64), FOREIGN[name]
    units = graph.Graph(model, images[:1]).discover()[0]
    assert len(units) == layers
    assert stream not in {layer for unit in units for layer in (unit.layer, *unit.producers)}
    kept = random_kept(units, seed=1)
    dense = candidates(model, images[:1], units, adjust=0, floor=0)
    assert_pruned_equals_silenced(model, units, kept, images)
    assert dense.cost([len(kept[unit.layer]) for unit in units]) == count(model, images[:1])


class Net(test_any_network.Net):
    """Layers by name with drawn parameters, in float64, and a function of them and the input."""

    def __init__(self, function, **layers):
        super().__init__(function, **layers)
        self.double().eval()


def grouped(groups):
    return Net(
        lambda net, x: net.last(torch.relu(net.middle(torch.relu(net.first(x))))),
        first=nn.Conv2d(3, 8, 1), middle=nn.Conv2d(8, 8, 1, groups=groups), last=nn.Conv2d(8, 2, 1),
    )  # fmt: skip


def flattened():
    return Net(
        lambda net, x: net.out(torch.relu(net.hidden(torch.relu(net.norm(net.conv(x))).flatten(1)))),
        conv=nn.Conv2d(3, 8, 3), norm=nn.BatchNorm2d(8), hidden=nn.Linear(8 * 4, 6), out=nn.Linear(6, 5),
    )  # fmt: skip


def called():
    """Layers called several times: on their own output, at two resolutions, and one slope for two of them."""

    def function(net, x):
        x = torch.relu(net.again(torch.relu(net.again(torch.relu(net.stem(x))))))
        sizes = (x, nn.functional.avg_pool2d(x, 2))
        heads = [net.out(net.slope(net.next(net.slope(net.hidden(size))))).mean((2, 3)) for size in sizes]
        return heads[0] + heads[1]

    sizes = {"stem": (3, 8), "again": (8, 8), "hidden": (8, 6), "next": (6, 6), "out": (6, 2)}
    return Net(function, **{name: nn.Conv2d(*size, 1) for name, size in sizes.items()}, slope=nn.PReLU(6))


def tied():
    """Two layers with one weight, and one layer with two names."""

    def function(net, x):
        for layer in (net.first, net.one, net.other, net.middle, net.alias):
            x = torch.relu(layer(x))
        return net.out(x)

    sizes = dict(first=(3, 8), one=(8, 8), other=(8, 8), middle=(8, 6), named=(6, 6), out=(6, 2))
    model = Net(function, **{name: nn.Conv2d(*size, 1) for name, size in sizes.items()})
    model.other.weight, model.alias = model.one.weight, model.named
    return model


def added():
    """Two convolutions added together: a channel of one cannot go without that of the other."""
    return Net(lambda net, x: net.out(torch.relu(net.left(x) + net.right(x))),
               left=nn.Conv2d(3, 4, 1), right=nn.Conv2d(3, 4, 1), out=nn.Conv2d(4, 2, 1))  # fmt: skip


# what is kept; the layers that are found, with their producers and groups
SMALL = {
    "flattened": (flattened, {"conv": [1, 2, 7], "hidden": [0, 4]},
                  {"conv": ("conv norm", 1), "hidden": ("hidden", 1)}),
    "groups": (lambda: grouped(4), {"first": [1], "middle": [0]},
               {"first": ("first", 4), "middle": ("middle", 4)}),
    "depthwise": (lambda: grouped(8), {"first": [0, 3, 4]}, {"first": ("first middle", 1)}),
    "called": (called, {"stem": [0, 2, 5], "hidden": [1, 4]},
               {"stem": ("again stem", 1), "hidden": ("hidden next slope", 1)}),
    "tied": (tied, {"middle": [0, 4], "named": [1, 2, 3]}, {"middle": ("middle", 1), "named": ("named", 1)}),
    "added": (added, {"left": [1, 3]}, {}),
}  # fmt: skip


@pytest.mark.parametrize(("build", "kept", "expected"), SMALL.values(), ids=SMALL.keys())
def test_small_networks_are_understood_and_pruned_exactly(build, kept, expected):
    model, images = build(), draw(3, 4, 4)
    found = graph.Graph(model, images[:1]).discover()[0]
    assert {unit.layer: (" ".join(sorted(unit.producers)), unit.groups) for unit in found} == expected
    units = graph.Graph(model, images[:1]).units([Prunable(layer) for layer in kept])
    assert all(unit in units for unit in found)
    assert_pruned_equals_silenced(model, units, kept, images)


def test_kept_are_original_indices_and_all_of_them_change_nothing(network):
    model, example = network("vgg", "vgg_small", (1, 8, 8)), torch.zeros(1, 1, 8, 8)
    before, kept = copy.deepcopy(model.state_dict()), [0, 5, 6, 127]
    graph.prune(model, example, {"features.0": list(range(32))})
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    graph.prune(model.train(), example, {"features.17": kept})
    assert all(module.training for module in model.modules())
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert torch.equal(getattr(model.features[18], name), before[f"features.18.{name}"][kept])
    assert torch.equal(model.classifier.weight, before["classifier.weight"][:, kept])
    assert torch.equal(model.classifier.bias, before["classifier.bias"])  # all classes stay


def test_frozen_parameters_are_pruned_and_stay_frozen(network, random_kept):
    model, example = network("resnet_cifar", "resnet20", (3, 32, 32)), torch.zeros(1, 3, 32, 32)
    free = copy.deepcopy(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = not name.startswith(("conv1", "bn1", "layer1"))
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    units = graph.Graph(model, example).discover()[0]
    with pytest.raises(RuntimeError, match="channels"):
        graph.Graph(model, example[:, :2])
    assert units == graph.Graph(free, example).discover()[0]
    for network_ in (model, free):
        graph.prune(network_, example, random_kept(units, seed=1))
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert all(torch.equal(value, free.state_dict()[key]) for key, value in model.state_dict().items())


# ---- what is refused

BAD_CHOICES = {
    "unknown layer": ({"features.99": [0]}, "'features.99': the network has no convolution or linear layer"),
    "nothing kept": ({"features.0": []}, r"'features.0'.* in 0\.\.31"),
    "unsorted": ({"features.0": [3, 1]}, "'features.0'.* sorted"),
    "too high": ({"features.0": [0, 32]}, r"'features.0'.* in 0\.\.31"),
    "negative": ({"features.0": [-1, 0]}, r"'features.0'.* in 0\.\.31"),
}


@pytest.mark.parametrize(("kept", "message"), BAD_CHOICES.values(), ids=BAD_CHOICES.keys())
def test_bad_choices_are_refused_and_nothing_is_cut(network, kept, message):
    model = network("vgg", "vgg_small", (1, 8, 8))
    shapes = [tensor.shape for tensor in model.state_dict().values()]
    with pytest.raises(UserError, match=message):
        # a good layer first: it must not be cut when a later one is refused
        graph.prune(model, torch.zeros(1, 1, 8, 8), {"features.3": [0, 1], **kept})
    assert [tensor.shape for tensor in model.state_dict().values()] == shapes


ONE_WEIGHT = "'one' and 'other' have one weight: its channels stay"
SHARED = [
    (added, 3, ("left", "right"), "'left' and 'right' share their channels"),
    (tied, 3, ("middle", "first"), f"^layer 'first': {ONE_WEIGHT}"),
    (tied, 3, ("middle", "one"), f"^layer 'one': {ONE_WEIGHT}"),
]


@pytest.mark.parametrize(("build", "channels", "layers", "message"), SHARED)
def test_layers_whose_channels_are_not_their_own_are_refused(build, channels, layers, message):
    model = build()
    with pytest.raises(UserError, match=message):
        graph.prune(model, torch.zeros(1, channels, 4, 4).double(), {layer: [0, 1] for layer in layers})
    assert model.get_submodule(layers[0]).out_channels > 2


def test_protected_and_untraceable():
    assert [unit.layer for unit in graph.Graph(called(), IMAGE).discover(["again"])[0]] == ["hidden"]
    with pytest.raises(UserError, match="protected: the network has no 'layer9'"):
        graph.Graph(called(), IMAGE).discover(["layer9"])
    vit = torchvision.models.vit_b_32(weights=None)  # its attention calls no layer: the others are found
    found, left = graph.Graph(vit, torch.zeros(1, 3, 224, 224)).discover()
    assert [unit.layer.rpartition(".")[2] for unit in found] == ["0"] * 12  # of each block's MLP
    assert {name.rpartition(".")[2] for name in left} == {"out_proj", "conv_proj", "3"}  # the stream's
    reason_of = "nothing calls it by itself"
    assert all((reason_of in reason) == name.endswith("out_proj") for name, reason in left.items())
