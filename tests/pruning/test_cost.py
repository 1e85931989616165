"""Multiply-adds and parameters: against published counts, PyTorch's counter, and networks really pruned."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lpslim.models import family as families
from lpslim.pruning import graph
from lpslim.pruning.budget import candidates
from lpslim.pruning.cost import Cost, CostModel, count, layer_costs, parameters
from lpslim.pruning.units import Prunable

CIFAR, IMAGENET, SMALL = (3, 32, 32), (3, 224, 224), (3, 64, 64)


def counted_by_torch(model, example):
    """Return the multiply-adds that PyTorch itself counts, operator by operator; it counts each twice."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(example)
    assert counter.get_total_flops() % 2 == 0
    return counter.get_total_flops() // 2


# ResNet-CIFAR and VGG: the public implementations; ResNet-50: torchvision's parameter count
KNOWN = [
    ("resnet_cifar", "resnet20", CIFAR, 10, 40_551_040, 269_722),
    ("resnet_cifar", "resnet56", CIFAR, 10, 125_485_696, 853_018),
    ("resnet_cifar", "resnet110", CIFAR, 10, 252_887_680, 1_727_962),
    ("vgg", "vgg16", CIFAR, 10, 313_201_664, 14_728_266),
    ("torchvision", "resnet50", IMAGENET, 1000, 4_089_184_256, 25_557_032),
]


@pytest.mark.parametrize(
    ("family", "name", "shape", "classes", "macs", "params"), KNOWN, ids=[row[1] for row in KNOWN]
)
def test_known_counts(network, family, name, shape, classes, macs, params):
    model = network(family, name, shape, classes=classes)
    assert count(model, torch.zeros(1, *shape)) == Cost(macs, params)


NETWORKS = [
    *(("vgg", name, CIFAR) for name in ("vgg_small", "vgg16", "vgg19")),
    *(("resnet_cifar", name, CIFAR) for name in ("resnet20", "resnet56", "resnet110")),
    *(("torchvision", name, SMALL) for name in ("resnet18", "resnet34", "resnet50")),
]


@pytest.mark.parametrize(("family", "name", "shape"), NETWORKS, ids=[name for _, name, _ in NETWORKS])
def test_predicted_equals_really_pruned(network, random_kept, family, name, shape):
    model, example = network(family, name, shape), torch.zeros(1, *shape)
    units = families.get(family).units(model, example)
    predict = CostModel(layer_costs(model, example), units, parameters(model))
    full = [unit.size for unit in units]
    assert predict(full) == predict.dense == count(model, example)
    assert predict.flops_drop(full) == predict.params_drop(full) == 0
    kept = random_kept(units, seed=len(units))
    widths = [len(kept[unit.layer]) for unit in units]

    graph.prune(model, example, kept)

    predicted, measured = predict(widths), count(model, example)
    assert predicted == measured
    assert all(type(number) is int for number in (*vars(predicted).values(), *vars(measured).values()))
    assert measured.macs == counted_by_torch(model, example)
    assert predict.flops_drop(widths) == pytest.approx(1 - measured.macs / predict.dense.macs, abs=1e-12)
    assert predict.params_drop(widths) == pytest.approx(1 - measured.params / predict.dense.params, abs=1e-12)


def test_resnet50_at_its_floors(network):
    """The one figure of the paper's setting that follows from the architecture alone."""
    model, example = network("torchvision", "resnet50", IMAGENET, classes=1000), torch.zeros(1, *IMAGENET)
    units = families.get("torchvision").units(model, example)
    dense = candidates(model, example, units, adjust=0.45, floor=0.3)
    assert 100 * dense.cost.flops_drop(dense.least) == pytest.approx(63.28, abs=0.005)
    assert 100 * dense.cost.params_drop(dense.least) == pytest.approx(47.04, abs=0.005)

    graph.prune(model, example, {u.layer: list(range(n)) for u, n in zip(units, dense.least, strict=True)})
    assert count(model, example) == dense.cost(dense.least)


class Called(nn.Module):
    """One head at two resolutions, its norm and slope with it, and a layer applied to its own output."""

    def __init__(self):
        super().__init__()
        self.stem, self.again = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.hidden = nn.Conv2d(8, 6, 3, padding=1)
        self.norm, self.slope = nn.BatchNorm2d(6), nn.PReLU(6)
        self.out = nn.Conv2d(6, 2, 1)

    def head(self, x):
        return self.out(self.slope(self.norm(self.hidden(x)))).mean((2, 3))

    def forward(self, x):
        x = self.again(torch.relu(self.again(torch.relu(self.stem(x)))))
        return self.head(x) + self.head(nn.functional.avg_pool2d(x, 2))


def sequence(**layers):
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    return model


# network, shape of its input, cost when dense; what is kept and the cost then
BY_HAND = {
    "depthwise": (
        lambda: sequence(first=nn.Conv2d(3, 8, 1, bias=False), depthwise=nn.Conv2d(8, 8, 3, 2, 1, groups=8),
                         norm=nn.BatchNorm2d(8), relu=nn.ReLU(), last=nn.Conv2d(8, 5, 1)),
        (3, 8, 8), Cost(64 * 3 * 8 + 16 * 9 * 8 + 16 * 8 * 5, 3 * 8 + (9 * 8 + 8) + 2 * 8 + (8 * 5 + 5)),
        {"first": [1, 4, 6]}, Cost(64 * 3 * 3 + 16 * 9 * 3 + 16 * 3 * 5, 9 + (27 + 3) + 6 + (15 + 5)),
    ),
    "flattened": (  # each channel feeds 16 inputs of the linear layer, whose neurons are prunable too
        lambda: sequence(conv=nn.Conv2d(3, 8, 3, padding=1), relu=nn.ReLU(), flat=nn.Flatten(),
                         hidden=nn.Linear(8 * 16, 6), act=nn.ReLU(), out=nn.Linear(6, 5, bias=False)),
        (3, 4, 4), Cost(16 * 27 * 8 + 8 * 16 * 6 + 30, 28 * 8 + (8 * 16 + 1) * 6 + 30),
        {"conv": [0, 2, 3, 6, 7], "hidden": [1, 5]},
        Cost(16 * 27 * 5 + 5 * 16 * 2 + 2 * 5, 28 * 5 + (5 * 16 + 1) * 2 + 2 * 5),
    ),
    "tokens": (  # a linear layer counts every position
        lambda: sequence(up=nn.Linear(4, 3), act=nn.ReLU(), down=nn.Linear(3, 4)),
        (7, 4), Cost(7 * 24, 15 + 16), {"up": [1]}, Cost(7 * 8, 5 + 8),
    ),
    "other parameters": (  # of layers that multiply-adds pass over, and a norm that has none
        lambda: sequence(conv=nn.Conv2d(3, 4, 1), plain=nn.BatchNorm2d(4, affine=False), slope=nn.PReLU(),
                         out=nn.Conv2d(4, 2, 1), last=nn.LayerNorm(6)),
        (3, 6, 6), Cost(36 * 12 + 36 * 8, 16 + 1 + 10 + 12), {"conv": [2]}, Cost(36 * 5, 4 + 1 + 4 + 12),
    ),
    "parameters per channel": (
        lambda: sequence(conv=nn.Conv2d(3, 4, 1), norm=nn.InstanceNorm2d(4, affine=True), slope=nn.PReLU(4),
                         out=nn.Conv2d(4, 2, 1)),
        (3, 6, 6), Cost(36 * 20, 16 + 8 + 4 + 10), {"conv": [2]}, Cost(36 * 5, 4 + 2 + 1 + 4),
    ),
    "called twice": (  # its positions count twice and its parameters once
        Called, (3, 8, 8),
        Cost(64 * 27 * 8 + 2 * 64 * 64 + 80 * (72 * 6 + 12), 28 * 8 + 72 + (72 * 6 + 6) + 12 + 6 + 14),
        {"stem": [0, 2, 5], "hidden": [4, 5]},
        Cost(64 * 27 * 3 + 2 * 64 * 9 + 80 * (27 * 2 + 4), 28 * 3 + 12 + (27 * 2 + 2) + 4 + 2 + 6),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("build", "shape", "dense", "kept", "left"), BY_HAND.values(), ids=BY_HAND.keys())
def test_costs_by_hand(build, shape, dense, kept, left):
    model, example = build().eval(), torch.rand(1, *shape)
    units = graph.Graph(model, example).units([Prunable(layer) for layer in kept])
    predict = CostModel(layer_costs(model, example), units, parameters(model))
    assert predict.dense == count(model, example) == dense
    assert dense.macs == counted_by_torch(model, example)
    graph.prune(model, example, kept)
    assert predict([len(indices) for indices in kept.values()]) == count(model, example) == left
    assert left.macs == counted_by_torch(model, example)


def test_products_outside_of_layers_are_counted():
    model = nn.ModuleDict({"used": nn.Conv2d(3, 4, 1), "attention": nn.MultiheadAttention(4, 2)}).eval()
    model.forward = lambda x: model["attention"](*[model["used"](x).flatten(2).permute(2, 0, 1)] * 3)[0]
    macs = 4 * (3 * 4 + 4 * 12 + 4 * 4)  # the convolution, the projections in and out
    assert count(model, torch.zeros(1, 3, 2, 2)) == Cost(macs, 16 + 60 + 20)
