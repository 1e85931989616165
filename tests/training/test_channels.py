"""ADMM on whole channels: what is removed is silent, budgets are met, what cannot be silenced is named."""

import copy

import pytest
import torch
from torch import nn

import lpslim
from lpslim.base.errors import UserError
from lpslim.models import family as families
from lpslim.pruning import budget
from lpslim.pruning.cost import count
from lpslim.training.callbacks import CUT_BELOW, ChannelADMM
from tests.training.toys import STEPS, channels, trained

NETWORKS = {
    "vgg_small": ("vgg", (1, 1, 8, 8)),
    "resnet20": ("resnet_cifar", (1, 3, 32, 32)),
    "resnet18": ("torchvision", (1, 3, 32, 32)),
    "tiny": ("bert", None),
}
TARGETS = [{"target_flops": 0.4}, {"target_params": 0.3}] * 2  # of the networks in turn


def dense(network, name):
    """Return a network of the package, an input, and the units that its family finds."""
    family, shape = NETWORKS[name]
    if shape:
        model, example = network(family, name, shape[1:]), torch.randn(shape)
    else:
        torch.manual_seed(0)
        settings = families.get(family).arguments(name, (3, 16))
        model = families.get(family).build(name, num_classes=2, **settings).eval()
        example = torch.randint(5, 20, (2, 3, 16))
        example[:, 1], example[:, 2] = 1, 0
    units = families.get(family).units(model, example)
    return model, example, budget.candidates(model, example, units, adjust=0.1, floor=0.1)


@pytest.mark.parametrize(("name", "target"), [*zip(NETWORKS, TARGETS, strict=True)], ids=NETWORKS)
def test_a_network_whose_removed_units_are_zero_computes_the_same_without_them(network, name, target):
    model, example, candidates = dense(network, name)
    model = model.double()
    example = example.double() if example.is_floating_point() else example
    admm = ChannelADMM(model, example, **target, epochs=1, updates_per_epoch=1, candidates=candidates)
    assert not admm.left
    admm.begin()
    admm.after_step(1, 1)
    kept = admm.kept()
    sizes = {unit.layer: unit.size for unit in candidates.units}
    assert sum(map(len, kept.values())) < sum(sizes.values())
    drop = candidates.cost.flops_drop if "target_flops" in target else candidates.cost.params_drop
    (share,) = target.values()
    assert drop([len(kept[layer]) for layer in sizes]) == pytest.approx(share, abs=0.003)
    with admm.admm.silenced(), torch.no_grad():
        whole, smaller = model(example), copy.deepcopy(model)
    families.get(NETWORKS[name][0]).cut(smaller, example, kept)
    with torch.no_grad():
        assert (smaller(example) - whole).abs().max() <= 1e-9 * whole.abs().max()
        assert (model(example) - whole).abs().max() > 1e-4  # as it was, it computes something else


class Gate(nn.Module):
    """Two branches of convolutions, one behind a sigmoid that nothing multiplies, one behind a ReLU."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 1)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x):
        return self.c(torch.sigmoid(self.norm(self.b(torch.relu(self.a(x))))))


def test_units_that_are_not_silent_at_zero_are_left_alone_and_named(caplog):
    model, example = Gate(), torch.randn(1, 3, 8, 8)
    admm = ChannelADMM(model, example, ratio=0.5, epochs=1, updates_per_epoch=1)
    admm.begin()
    admm.after_step(1, 1)
    assert list(admm.left) == ["b"]
    assert "b: left alone: its channels are not zero" in caplog.text
    assert admm.kept()["b"] == list(range(8))
    assert len(admm.cut().kept["a"]) == 4
    with pytest.raises(UserError, match="no layer can be silenced"):
        ChannelADMM(model, example, ratio=0.5, epochs=1, protected=["a"])


@pytest.mark.parametrize("norm", [nn.InstanceNorm2d(8), nn.BatchNorm2d(8, affine=False)])
def test_units_that_a_norm_without_a_scale_makes_large_again_are_left_alone(norm):
    layers = [nn.Conv2d(3, 8, 3), norm, nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1)]
    admm = ChannelADMM(nn.Sequential(*layers), torch.randn(1, 3, 8, 8), ratio=0.4, epochs=1)
    assert admm.left == {"0": "'1', a norm without a scale, makes its channels large again"}


def test_in_a_loop_of_ones_own_the_cut_is_not_felt():
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 64, 3, bias=False), nn.Conv2d(64, 64, 3)
    model = nn.Sequential(first, nn.BatchNorm2d(64), nn.ReLU(), second, nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                          nn.Flatten(), nn.Linear(64, 4))  # fmt: skip
    images, labels = torch.randn(64, 3, 8, 8), torch.arange(64) % 4
    optimizer, epochs, steps = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9), 8, 8
    admm = lpslim.ChannelADMM(model, images[:1], target_flops=0.5, epochs=epochs)
    admm.begin()
    for step in range(1, epochs * steps + 1):
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        admm.after_step(step, steps)
    assert admm.settled
    rows = admm.convergence
    assert [row["iteration"] for row in rows] == list(range(1, 33))
    assert rows[-1]["gap"] < CUT_BELOW < rows[0]["gap"]
    assert [row["part"] for row in rows] == sorted(row["part"] for row in rows)
    assert all(0 < row["shrinkage"] <= 1 for row in rows)
    frozen = [row["units"] for row in rows if row["rho"] > rows[0]["rho"]]
    assert len(frozen) > 1
    assert len(set(frozen)) == 1
    pruned = admm.cut()
    assert pruned.reached == pytest.approx(0.5, abs=0.003)
    assert pruned.pruned == count(pruned.model, images[:1])
    with torch.no_grad():
        before, after = model.eval()(images), pruned.model.eval()(images)
    assert (after - before).abs().max() < 0.05 * before.abs().max()


def test_a_training_ends_with_the_budget_met_and_zeros_not_numbers_too_small_for_a_quick_processor():
    model, _, admm = trained(lambda model: channels(model, epochs=9, rho=3.0), epochs=9)
    kept = admm.kept()["0"]
    gone = sorted({*range(4)} - {*kept})
    assert admm.convergence[-1]["gap"] == 0
    assert not model[0].weight[gone].any()
    assert model[0].weight[kept].all()
    # the budget is met however few the steps
    _, _, admm = trained(lambda model: channels(model, ratio=0.5, updates_per_epoch=STEPS + 3))
    assert admm.frozen
    assert admm.convergence[-1]["iteration"] == 3 * (STEPS + 3)
    assert {layer: len(units) for layer, units in admm.kept().items()} == {"0": 2}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "give one of target_flops, target_params, ratio, got none"),
        ({"ratio": 0.5, "target_flops": 0.5}, "got target_flops, ratio"),
        ({"target_flops": 0.99}, "target_flops=0.99: must be at most"),
        *(({"ratio": 0.5, key: value}, f"^{key}={value}: must be ")
          for key, value in {"rho": 0.0, "p": 0.5, "M": -1, "round_to": 0, "floor": 1, "epochs": 0}.items()),
        ({"ratio": 0.5, "protected": ["nothing"]}, "protected"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused(options, said):
    with pytest.raises(UserError, match=said):
        ChannelADMM(Gate(), torch.randn(1, 3, 8, 8), **{"epochs": 1, **options})


def test_one_vector_is_an_example():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    admm = ChannelADMM(model, torch.randn(6), ratio=0.5, epochs=1)
    assert [unit.layer for unit in admm.candidates.units] == ["0"]
