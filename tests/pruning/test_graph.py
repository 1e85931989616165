"""A pruned network computes what the whole one does with the removed channels silenced."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import Tensor, nn

from lpslim.base import registry
from lpslim.base.errors import UserError
from lpslim.pruning import graph
from lpslim.pruning.units import Prunable

NETWORKS = [
    ("vgg", "vgg_small", (1, 8, 8)),
    ("vgg", "vgg16", (3, 32, 32)),
    ("vgg", "vgg19", (3, 32, 32)),
    ("resnet_cifar", "resnet20", (3, 32, 32)),
    ("resnet_cifar", "resnet56", (3, 32, 32)),
    ("resnet_imagenet", "resnet18", (3, 64, 64)),
    ("resnet_imagenet", "resnet50", (3, 64, 64)),
]
IMAGE = torch.zeros(1, 3, 4, 4)


def batch_norm_after(layer: str) -> str:
    """Return the name of the batch-norm behind a convolution, from how the families name their layers."""
    if layer.startswith("features."):
        return f"features.{int(layer.removeprefix('features.')) + 1}"
    return re.sub(r"conv(\d)$", r"bn\1", layer)


def silenced(model: nn.Module, kept: dict[str, list[int]]) -> nn.Module:
    """Return a copy of full width whose removed channels are zero from the filter to the batch-norm."""
    model = copy.deepcopy(model)
    for layer, indices in kept.items():
        conv, norm = model.get_submodule(layer), model.get_submodule(batch_norm_after(layer))
        gone = torch.ones(conv.weight.shape[0], dtype=torch.bool)
        gone[indices] = False
        with torch.no_grad():
            for tensor in (conv.weight, conv.bias, norm.weight, norm.bias):
                if tensor is not None:
                    tensor[gone] = 0
    return model


def output_and_gradient(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits, and the gradient with respect to the images of an arbitrary mix of them."""
    images = images.clone().requires_grad_()
    logits = model(images)
    mix = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)
    (gradient,) = torch.autograd.grad((logits * mix).sum(), images)
    return logits.detach(), gradient


def assert_same_function(one: nn.Module, other: nn.Module, images: Tensor) -> None:
    pairs = zip(output_and_gradient(one, images), output_and_gradient(other, images), strict=True)
    for got, expected in pairs:
        scale = expected.abs().max().item()
        assert scale > 0  # two dead networks would agree as well
        # deep in a random network gradients are small: the error is measured against them
        torch.testing.assert_close(got / scale, expected / scale, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("family", "name", "shape"), NETWORKS, ids=[name for _, name, _ in NETWORKS])
def test_pruned_equals_silenced(network, random_kept, family, name, shape):
    model = network(family, name, shape).double()
    example = torch.zeros(1, *shape, dtype=torch.float64)
    units = surgery.find_units(model, example, lookup.find("models", family).prunable(model))
    kept = random_kept(units, seed=1)
    reference = silenced(model, kept)
    images = torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    whole = model(images).detach()

    surgery.prune(model, example, kept)

    for layer, indices in kept.items():
        assert model.get_submodule(layer).weight.shape[0] == len(indices)
    assert_same_function(model, reference, images)
    assert (model(images) - whole).abs().max() > 1e-3  # the choice did remove something that counts


@pytest.mark.parametrize(
    ("family", "name", "shape"), [NETWORKS[0], NETWORKS[3]], ids=["vgg_small", "resnet20"]
)
def test_kept_are_original_indices(network, random_kept, family, name, shape):
    model = network(family, name, shape)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    example = torch.zeros(1, *shape)
    units = surgery.find_units(model, example, lookup.find("models", family).prunable(model))
    kept = random_kept(units, seed=3)

    surgery.prune(model, example, kept)

    for layer, indices in kept.items():
        norm = model.get_submodule(batch_norm_after(layer))
        for field in ("running_mean", "running_var", "weight", "bias"):
            original = before[f"{batch_norm_after(layer)}.{field}"]
            assert torch.equal(getattr(norm, field), original[indices]), (layer, field)


def test_last_convolution_of_vgg_shrinks_the_classifier(network):
    model = network("vgg", "vgg_small", (1, 8, 8))
    columns = model.classifier.weight.detach().clone()
    biases = model.classifier.bias.detach().clone()
    kept = [0, 5, 6, 127]

    surgery.prune(model, torch.zeros(1, 1, 8, 8), {"features.17": kept})

    assert torch.equal(model.classifier.weight, columns[:, kept])
    assert torch.equal(model.classifier.bias, biases)  # all classes stay
    assert model.classifier.in_features == 4


class Flattened(nn.Module):
    """A convolution whose 2x2 maps are flattened: each channel feeds four inputs of the linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(2)
        self.hidden = nn.Linear(8 * 4, 6)
        self.out = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.norm(self.conv(x))))
        return self.out(torch.relu(self.hidden(x.flatten(1))))


def test_flattened_maps_and_hidden_neurons():
    torch.manual_seed(0)
    model = Flattened().double().eval()
    example = IMAGE.double()
    channels, neurons = [1, 2, 7], [0, 4]
    reference = copy.deepcopy(model)
    with torch.no_grad():
        lost_channels = [i for i in range(8) if i not in channels]
        for tensor in (reference.norm.weight, reference.norm.bias):
            tensor[lost_channels] = 0
        lost_neurons = [i for i in range(6) if i not in neurons]
        for tensor in (reference.hidden.weight, reference.hidden.bias):
            tensor[lost_neurons] = 0

    surgery.prune(model, example, {"conv": channels, "hidden": neurons})

    assert model.hidden.weight.shape == (2, 12)
    images = torch.randn(3, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert_same_function(model, reference, images)


def test_keeping_everything_changes_nothing(network):
    model = network("resnet_cifar", "resnet20", (3, 32, 32))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    kept = {each.layer: list(range(model.get_submodule(each.layer).out_channels))
            for each in lookup.find("models", "resnet_cifar").prunable(model)}  # fmt: skip
    surgery.prune(model, torch.zeros(1, 3, 32, 32), kept)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_kept_and_statistics_do_not_move(network, training):
    model = network("vgg", "vgg_small", (1, 8, 8)).train(training)
    before = model.features[1].running_mean.clone()
    surgery.prune(model, torch.zeros(1, 1, 8, 8), {"features.3": [0, 1]})
    assert all(module.training is training for module in model.modules())
    assert torch.equal(model.features[1].running_mean, before)


FROZEN = {"all": ("",), "all but the end": ("conv1", "bn1", "layer1"), "one layer": ("layer2.0.conv1",)}


@pytest.mark.parametrize("frozen", FROZEN.values(), ids=FROZEN.keys())
def test_frozen_parameters_are_pruned_and_stay_frozen(network, random_kept, frozen):
    shape = (3, 32, 32)
    model, example = network("resnet_cifar", "resnet20", shape), torch.zeros(1, *shape)
    free = copy.deepcopy(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = not name.startswith(frozen)
    flags = {name: each.requires_grad for name, each in model.named_parameters()}

    units = surgery.discover(model, example)
    assert units == surgery.discover(free, example)
    assert {name: each.requires_grad for name, each in model.named_parameters()} == flags
    kept = random_kept(units, seed=1)
    surgery.prune(model, example, kept)
    surgery.prune(free, example, kept)
    assert {name: each.requires_grad for name, each in model.named_parameters()} == flags
    assert all(torch.equal(value, free.state_dict()[key]) for key, value in model.state_dict().items())


def test_flags_come_back_when_the_trace_fails():
    model = Flattened()
    model.conv.weight.requires_grad = False
    with pytest.raises(RuntimeError, match="channels"):
        surgery.discover(model, torch.zeros(1, 2, 4, 4))
    assert [name for name, each in model.named_parameters() if not each.requires_grad] == ["conv.weight"]


def test_parameters_that_are_no_real_numbers_are_left_alone():
    model = Flattened()
    model.register_parameter("steps", nn.Parameter(torch.tensor(3), requires_grad=False))
    surgery.prune(model, IMAGE, {"hidden": [1, 2]})
    assert model.hidden.out_features == 2


def test_units_name_every_layer_that_shrinks(network):
    model = network("resnet_imagenet", "resnet50", (3, 64, 64))
    units = surgery.find_units(
        model, torch.zeros(1, 3, 64, 64), lookup.find("models", "resnet_imagenet").prunable(model)
    )
    found = {each.layer: each for each in units}
    # 16 bottlenecks less the last, two convolutions each: the residual streams keep their width
    assert len(units) == 30
    assert not any(name.startswith("layer4.2") or "conv3" in name or name == "conv1" for name in found)
    sensitive = {name.rsplit(".", 1)[0] for name, each in found.items() if each.sensitive}
    assert sensitive == {"layer1.0", "layer2.0", "layer3.0", "layer4.0", "layer4.1"}
    one = found["layer2.1.conv2"]
    assert (one.size, one.producers, one.consumers) == (
        128,
        ("layer2.1.conv2", "layer2.1.bn2"),
        ("layer2.1.conv3",),
    )


# ---- what is refused


BAD_CHOICES = {
    "unknown layer": ({"features.99": [0]}, ["'features.99'", "no convolution or linear layer of this name"]),
    "a batch-norm": ({"features.1": [0]}, ["'features.1'", "no convolution or linear layer"]),
    "a container": ({"features": [0]}, ["'features'", "no convolution or linear layer"]),
    "nothing kept": ({"features.0": []}, ["'features.0'", "sorted, distinct, in 0..31, not none"]),
    "unsorted": ({"features.0": [3, 1]}, ["'features.0'", "sorted"]),
    "twice the same": ({"features.0": [1, 1]}, ["'features.0'", "distinct"]),
    "too high": ({"features.0": [0, 32]}, ["'features.0'", "0..31"]),
    "negative": ({"features.0": [-1, 0]}, ["'features.0'", "0..31"]),
}


@pytest.mark.parametrize(("kept", "parts"), BAD_CHOICES.values(), ids=BAD_CHOICES.keys())
def test_prune_refuses(network, kept, parts):
    model = network("vgg", "vgg_small", (1, 8, 8))
    shapes = [tensor.shape for tensor in model.state_dict().values()]
    with pytest.raises(UserError) as refused:
        # a good layer first: it must not be cut when a later one is refused
        surgery.prune(model, torch.zeros(1, 1, 8, 8), {"features.3": [0, 1], **kept})
    assert all(part in str(refused.value) for part in parts), refused.value
    assert [tensor.shape for tensor in model.state_dict().values()] == shapes


@pytest.mark.parametrize("layer", ["features.99", "features.1", "features"])
def test_find_units_refuses(network, layer):
    model = network("vgg", "vgg_small", (1, 8, 8))
    with pytest.raises(UserError, match=f"'{layer}'.*no convolution or linear layer of this name"):
        surgery.find_units(model, torch.zeros(1, 1, 8, 8), [Prunable(layer)])


class Added(nn.Module):
    """Two convolutions added together: a channel of one cannot go without that of the other."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.out = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.left(x) + self.right(x)))


def test_layers_that_share_channels_are_refused():
    model = Added()
    with pytest.raises(UserError, match="'left' and 'right' share their channels"):
        surgery.find_units(model, IMAGE, [Prunable("left"), Prunable("right")])
    # even if the choices agree: the second cut would take two channels more
    with pytest.raises(UserError, match="'left' and 'right' share their channels"):
        surgery.prune(model, IMAGE, {"left": [0, 1], "right": [0, 1]})
    assert model.left.out_channels == 4


def test_one_of_two_added_layers_takes_the_other_along():
    (units,) = surgery.find_units(Added(), IMAGE, [Prunable("left")])
    assert (set(units.producers), units.consumers) == ({"left", "right"}, ("out",))
    model = Added()
    surgery.prune(model, IMAGE, {"left": [1, 3]})
    assert (model.left.out_channels, model.right.out_channels, model.out.in_channels) == (2, 2, 2)


class Grouped(nn.Module):
    """A convolution that feeds a grouped one (``groups=8``: depthwise)."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.middle = nn.Conv2d(8, 8, 3, padding=1, groups=groups)
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.middle(torch.relu(self.first(x)))))


@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("layer", ["first", "middle"])
def test_a_grouped_convolution_loses_a_channel_of_each_group(layer, groups):
    torch.manual_seed(0)
    model = Grouped(groups).double()
    (units,) = surgery.find_units(model, IMAGE.double(), [Prunable(layer)])
    assert (units.size, units.groups) == (8 // groups, groups)
    reference, kept = copy.deepcopy(model), [1]
    gone = [g * units.size + i for g in range(groups) for i in range(units.size) if i not in kept]
    with torch.no_grad():
        getattr(reference, layer).weight[gone], getattr(reference, layer).bias[gone] = 0, 0
    surgery.prune(model, IMAGE.double(), {layer: kept})
    assert model.middle.groups == groups
    assert getattr(model, layer).out_channels == groups
    images = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert_same_function(model, reference, images)


def test_channels_grouped_in_two_ways_are_refused():
    class Twice(Grouped):
        def __init__(self):
            super().__init__(groups=2)
            self.other = nn.Conv2d(8, 8, 1, groups=4)

        def forward(self, x):
            x = torch.relu(self.first(x))
            return self.last(self.middle(x)) + self.other(x)[:, :2]

    with pytest.raises(UserError, match=r"'first': its channels are grouped in several ways, \[2, 4\]"):
        surgery.find_units(Twice(), IMAGE, [Prunable("first")])


def test_depthwise_convolution_shrinks_with_its_input():
    torch.manual_seed(0)
    model = Grouped(groups=8).double()
    reference, kept = copy.deepcopy(model), [0, 3, 4]
    gone = [i for i in range(8) if i not in kept]
    with torch.no_grad():
        for layer in (reference.first, reference.middle):
            layer.weight[gone], layer.bias[gone] = 0, 0
    surgery.prune(model, IMAGE.double(), {"first": kept})
    assert (model.middle.groups, model.last.in_channels) == (3, 3)
    images = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert_same_function(model, reference, images)


# ---- what is shared


class Tied(nn.Module):
    """Two layers with one weight, and one layer with two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.one, self.other = (nn.Conv2d(n, 8, 1) for n in (3, 8, 8))
        self.other.weight = self.one.weight
        self.middle, self.named = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 6, 1)
        self.alias = self.named
        self.out = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.first, self.one, self.other, self.middle, self.alias):
            x = torch.relu(layer(x))
        return self.out(x)


class Called(nn.Module):
    """Layers called several times: on their own output, at two resolutions, and one slope for two of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.hidden, self.next = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 6, 1)
        self.slope, self.out = nn.PReLU(6), nn.Conv2d(6, 2, 1)
        nn.init.uniform_(self.slope.weight)

    def head(self, x: Tensor) -> Tensor:
        return self.out(self.slope(self.next(self.slope(self.hidden(x))))).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.again(torch.relu(self.again(torch.relu(self.stem(x))))))
        return self.head(x) + self.head(nn.functional.avg_pool2d(x, 2))


def test_layers_called_several_times_lose_channels_exactly():
    torch.manual_seed(0)
    model = Called().double().eval()
    kept = {"stem": [0, 2, 5], "hidden": [1, 4]}
    units = surgery.discover(model, IMAGE.double())
    assert {each.layer: set(each.producers) - {"slope"} for each in units} == {
        "stem": {"stem", "again"},
        "hidden": {"hidden", "next"},
    }
    reference = copy.deepcopy(model)
    for each in units:
        gone = [i for i in range(each.size) if i not in kept[each.layer]]
        for layer in set(each.producers) - {"slope"}:
            with torch.no_grad():
                getattr(reference, layer).weight[gone], getattr(reference, layer).bias[gone] = 0, 0
    surgery.prune(model, IMAGE.double(), kept)
    assert (model.again.weight.shape, model.next.weight.shape) == ((3, 3, 1, 1), (2, 2, 1, 1))
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert_same_function(model, reference, images)


def test_layers_with_a_tied_weight_keep_their_width_on_both_sides():
    model = Tied().double()
    units = surgery.discover(model, IMAGE.double())
    assert [each.layer for each in units] == ["middle", "named"]  # not first, whose channels tied ones read
    reference, kept = copy.deepcopy(model), {"middle": [0, 4], "named": [1, 2, 3]}
    for layer, indices in kept.items():
        gone = [i for i in range(6) if i not in indices]
        with torch.no_grad():
            getattr(reference, layer).weight[gone], getattr(reference, layer).bias[gone] = 0, 0
    surgery.prune(model, IMAGE.double(), kept)
    assert model.one.weight is model.other.weight
    assert model.alias is model.named
    images = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(model(images), reference(images))


@pytest.mark.parametrize("layer", ["first", "one", "other"])
def test_a_tied_layer_is_refused_by_name(layer):
    model = Tied()
    with pytest.raises(UserError, match=f"^layer '{layer}': 'one' and 'other' have one weight: its channels"):
        surgery.prune(model, IMAGE, {"middle": [0], layer: [0]})
    assert model.middle.out_channels == 6
