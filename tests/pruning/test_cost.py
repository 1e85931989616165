"""Multiply-adds and parameters: against published counts, another counter, and real pruned networks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lpslim.base import registry
from lpslim.base.errors import UserError
from lpslim.pruning import graph, selection
from lpslim.pruning.cost import Cost, CostModel, count, layer_costs
from lpslim.pruning.units import Prunable

CIFAR, IMAGENET, SMALL = (3, 32, 32), (3, 224, 224), (3, 64, 64)


def cost_model(model: nn.Module, example: Tensor, prunables: list[Prunable]) -> CostModel:
    units = surgery.find_units(model, example, prunables)
    return CostModel(layer_costs(model, example), units, sum(p.numel() for p in model.parameters()))


def counted_by_torch(model: nn.Module, example: Tensor) -> int:
    """Return the multiply-adds that PyTorch itself counts, operator by operator; it counts each twice."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(example)
    total = counter.get_total_flops()
    assert total % 2 == 0
    return total // 2


# ResNet-CIFAR and VGG: the public implementations; ResNet-50: torchvision's parameter count
KNOWN = [
    ("resnet_cifar", "resnet20", CIFAR, 10, 40_551_040, 269_722),
    ("resnet_cifar", "resnet56", CIFAR, 10, 125_485_696, 853_018),
    ("resnet_cifar", "resnet110", CIFAR, 10, 252_887_680, 1_727_962),
    ("vgg", "vgg16", CIFAR, 10, 313_201_664, 14_728_266),
    ("resnet_imagenet", "resnet50", IMAGENET, 1000, 4_089_184_256, 25_557_032),
]


@pytest.mark.parametrize(
    ("family", "name", "shape", "classes", "macs", "params"), KNOWN, ids=[row[1] for row in KNOWN]
)
def test_known_counts(network, family, name, shape, classes, macs, params):
    model = network(family, name, shape, classes=classes)
    assert count(model, torch.zeros(1, *shape)) == Cost(macs, params)


PRUNED = [
    ("vgg", "vgg_small", (1, 8, 8), (0, 1, 2)),
    ("vgg", "vgg16", CIFAR, (0, 1)),
    ("vgg", "vgg19", CIFAR, (0,)),
    ("resnet_cifar", "resnet20", CIFAR, (0, 1, 2)),
    ("resnet_cifar", "resnet56", CIFAR, (0, 1)),
    ("resnet_cifar", "resnet110", CIFAR, (0,)),
    ("resnet_imagenet", "resnet18", SMALL, (0, 1)),
    ("resnet_imagenet", "resnet34", SMALL, (0,)),
    ("resnet_imagenet", "resnet50", SMALL, (0, 1)),
]


@pytest.mark.parametrize(
    ("family", "name", "shape", "seed"),
    [(family, name, shape, seed) for family, name, shape, seeds in PRUNED for seed in seeds],
    ids=[f"{name}-{seed}" for _, name, _, seeds in PRUNED for seed in seeds],
)
def test_predicted_equals_really_pruned(network, random_kept, family, name, shape, seed):
    model, example = network(family, name, shape), torch.zeros(1, *shape)
    predict = cost_model(model, example, lookup.find("models", family).prunable(model))
    kept = random_kept(predict.units, seed)
    widths = [len(kept[each.layer]) for each in predict.units]
    predicted = predict(widths)

    surgery.prune(model, example, kept)

    measured = count(model, example)
    assert predicted == measured
    assert all(type(number) is int for number in (*vars(predicted).values(), *vars(measured).values()))
    assert measured.macs == counted_by_torch(model, example)
    assert predict.flops_drop(widths) == pytest.approx(1 - measured.macs / predict.dense.macs, abs=1e-12)
    assert predict.params_drop(widths) == pytest.approx(1 - measured.params / predict.dense.params, abs=1e-12)


@pytest.mark.parametrize(
    ("family", "name", "shape"),
    [
        ("vgg", "vgg_small", (1, 8, 8)),
        ("resnet_cifar", "resnet20", CIFAR),
        ("resnet_imagenet", "resnet50", SMALL),
    ],
    ids=["vgg_small", "resnet20", "resnet50"],
)
def test_full_width_costs_what_the_dense_network_does(network, family, name, shape):
    model, example = network(family, name, shape), torch.zeros(1, *shape)
    predict = cost_model(model, example, lookup.find("models", family).prunable(model))
    sizes = [each.size for each in predict.units]
    dense = count(model, example)
    assert predict(sizes) == predict.dense == dense
    assert predict.flops_drop(sizes) == predict.params_drop(sizes) == 0
    assert dense.macs == counted_by_torch(model, example)


def test_resnet50_at_its_floors(network):
    """The one figure of the paper's setting that follows from the architecture alone."""
    model, example = network("resnet_imagenet", "resnet50", IMAGENET, classes=1000), torch.zeros(1, *IMAGENET)
    predict = cost_model(model, example, lookup.find("models", "resnet_imagenet").prunable(model))
    widths = selection.floors(predict.units, adjust=0.45, floor=0.3)
    assert 100 * predict.flops_drop(widths) == pytest.approx(63.28, abs=0.005)
    assert 100 * predict.params_drop(widths) == pytest.approx(47.04, abs=0.005)

    kept = {each.layer: list(range(n)) for each, n in zip(predict.units, widths, strict=True)}
    surgery.prune(model, example, kept)
    assert count(model, example) == predict(widths)


@pytest.mark.parametrize("block", range(9))
def test_one_channel_less_by_hand(network, block):
    model, example = network("resnet_cifar", "resnet20", CIFAR), torch.zeros(1, *CIFAR)
    predict = cost_model(model, example, lookup.find("models", "resnet_cifar").prunable(model))
    widths = [each.size for each in predict.units]
    widths[block] -= 1
    stage = block // 3
    side, width_out = 32 // 2**stage, 16 * 2**stage
    width_in = width_out // 2 if block in (3, 6) else width_out  # the first block of a stage widens
    filters = 9 * (width_in + width_out)  # one 3x3 filter, and its slice of the next layer's
    assert predict.dense.macs - predict(widths).macs == side * side * filters
    assert predict.dense.params - predict(widths).params == filters + 2  # with the batch-norm's two


class Depthwise(nn.Module):
    """Pointwise, 3x3 depthwise with stride 2, batch-norm, pointwise: on 8x8 images of 3 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1, bias=False)
        self.depthwise = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8)
        self.norm = nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.norm(self.depthwise(self.first(x)))))


def test_depthwise_convolution_reads_one_channel_per_filter():
    model, example = Depthwise(), torch.zeros(1, 3, 8, 8)
    macs = 64 * 3 * 8 + 16 * 9 * 8 + 16 * 8 * 5
    params = 3 * 8 + (9 * 8 + 8) + 2 * 8 + (8 * 5 + 5)
    assert count(model, example) == Cost(macs, params)
    assert counted_by_torch(model, example) == macs

    predict = cost_model(model, example, [Prunable("first")])
    surgery.prune(model, example, {"first": [1, 4, 6]})
    assert predict([3]) == count(model, example)
    assert predict([3]).macs == 64 * 3 * 3 + 16 * 9 * 3 + 16 * 3 * 5


class Flattened(nn.Module):
    """A 4x4 map of every channel is flattened into a linear layer, whose neurons are prunable too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.hidden = nn.Linear(8 * 16, 6)
        self.out = nn.Linear(6, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.hidden(torch.relu(self.conv(x)).flatten(1))))


def test_a_flattened_channel_feeds_several_inputs():
    model, example = Flattened(), torch.zeros(1, 3, 4, 4)
    predict = cost_model(model, example, [Prunable("conv"), Prunable("hidden")])
    surgery.prune(model, example, {"conv": [0, 2, 3, 6, 7], "hidden": [1, 5]})
    macs = 16 * 27 * 5 + 5 * 16 * 2 + 2 * 5
    assert predict([5, 2]) == count(model, example) == Cost(macs, (27 + 1) * 5 + (5 * 16 + 1) * 2 + 2 * 5)


def test_linear_layer_counts_every_position():
    tokens = torch.zeros(1, 7, 4)
    model = nn.Linear(4, 3)
    assert count(model, tokens) == Cost(7 * 4 * 3, 4 * 3 + 3)
    assert counted_by_torch(model, tokens) == 7 * 4 * 3


class WithOthers(nn.Module):
    """Parameters in layers that the multiply-adds pass over, and a batch-norm that has none."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.plain = nn.BatchNorm2d(4, affine=False)
        self.slope = nn.PReLU()
        self.out = nn.Conv2d(4, 2, 1)
        self.layer_norm = nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer_norm(self.out(self.slope(self.plain(self.conv(x)))))


def test_every_parameter_counts():
    model, example = WithOthers(), torch.zeros(1, 3, 6, 6)
    predict = cost_model(model, example, [Prunable("conv")])
    assert predict.dense == count(model, example) == Cost(36 * 12 + 36 * 8, (12 + 4) + 1 + (8 + 2) + 12)
    surgery.prune(model, example, {"conv": [2]})
    assert predict([1]) == count(model, example)


@pytest.mark.parametrize("training", [True, False])
def test_measuring_leaves_no_trace(network, training):
    model = network("vgg", "vgg_small", (1, 8, 8)).train(training)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    layer_costs(model, torch.ones(1, 1, 8, 8))
    with pytest.raises(RuntimeError, match="channels"):  # even when the forward pass fails
        layer_costs(model, torch.ones(1, 2, 8, 8))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(module.training is training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


class WithNorms(nn.Module):
    """Norms and slopes with a parameter per channel, in a layer that loses channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.norm = nn.InstanceNorm2d(4, affine=True)
        self.slope = nn.PReLU(4)
        self.out = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.slope(self.norm(self.conv(x))))


def test_every_parameter_that_goes_with_a_channel_counts():
    model, example = WithNorms(), torch.rand(1, 3, 6, 6)
    predict = cost_model(model, example, [Prunable("conv")])
    surgery.prune(model, example, {"conv": [2]})
    assert predict([1]) == count(model, example)


def test_a_layer_that_is_not_called_is_not_passed_over_in_silence():
    model = nn.ModuleDict({"used": nn.Conv2d(3, 4, 1), "attention": nn.MultiheadAttention(4, 2)})
    model.forward = lambda x: model["attention"](*[model["used"](x).flatten(2).permute(2, 0, 1)] * 3)[0]
    with pytest.raises(UserError, match=r"^layer 'attention\.out_proj': is not called by itself"):
        count(model, torch.zeros(1, 3, 2, 2))


class Pyramid(nn.Module):
    """One head at two resolutions, its norm and slope with it, and a layer applied to its own output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.again = nn.Conv2d(8, 8, 1)
        self.hidden = nn.Conv2d(8, 6, 3, padding=1)
        self.norm, self.slope = nn.BatchNorm2d(6), nn.PReLU(6)
        self.out = nn.Conv2d(6, 2, 1)

    def head(self, x: Tensor) -> Tensor:
        return self.out(self.slope(self.norm(self.hidden(x)))).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(torch.relu(self.again(torch.relu(self.stem(x)))))
        return self.head(x) + self.head(nn.functional.avg_pool2d(x, 2))


def test_a_layer_called_twice_counts_its_positions_twice_and_its_parameters_once():
    model, example = Pyramid().eval(), torch.zeros(1, 3, 8, 8)
    macs = 64 * 27 * 8 + 2 * 64 * 8 * 8 + (64 + 16) * (9 * 8 * 6 + 6 * 2)
    params = (27 * 8 + 8) + (8 * 8 + 8) + (9 * 8 * 6 + 6) + 2 * 6 + 6 + (6 * 2 + 2)
    assert counted_by_torch(model, example) == macs
    predict = cost_model(model, example, [Prunable("stem"), Prunable("hidden")])
    assert predict.dense == predict([8, 6]) == count(model, example) == Cost(macs, params)
    surgery.prune(model, example, {"stem": [0, 2, 5], "hidden": [4, 5]})
    assert predict([3, 2]) == count(model, example)
    assert predict([3, 2]).macs == counted_by_torch(model, example)
