"""Channels that layers add up or concatenate: one unit each, removed exactly, counted, ranked and stored."""

import copy
from dataclasses import replace

import pytest
import torch
import torchvision
from torch import nn

import lpslim
from lpslim.base.errors import UserError
from lpslim.models import family as families
from lpslim.models import storage
from lpslim.pruning.budget import candidates
from lpslim.pruning.cost import count
from tests.conftest import unsettle
from tests.pruning.test_any_network import Net, chain, conv, fc
from tests.pruning.test_cost import counted_by_torch

IMAGE = torch.zeros(1, 3, 8, 8, dtype=torch.float64)


def added(net, x):
    """Add a concatenation to a third layer, whose channels then go with those of two others."""
    y = torch.cat([net.a(x), net.b(x)], 1).relu() + net.c(x)
    return net.f(net.d(y.relu()).relu().mean((2, 3)))


def split(net, x):
    """Give each half of a layer's channels to a layer of its own."""
    first, second = net.c(x).relu().chunk(2, 1)
    return net.f((net.d(first) * net.e(second).sigmoid()).mean((2, 3)))


def inception(net, x):
    y = torch.cat([net.one(x), net.three(net.down(x).relu())], 1).relu()
    return net.f(torch.cat([net.up(y), y], 1).relu().mean((2, 3)))


SMALL = {
    "added": lambda: Net(added, a=conv(3, 8), b=conv(3, 4), c=conv(3, 12), d=conv(12, 6), f=fc(6, 4)),
    "inception": lambda: Net(inception, one=conv(3, 6), down=conv(3, 4), three=conv(4, 6), up=conv(12, 6),
                             f=fc(18, 4)),
    "transposed": lambda: Net(lambda net, x: net.f((net.t(net.a(x).relu()) + net.b(x)).relu().mean((2, 3))),
                              a=nn.Conv2d(3, 12, 2, 2), t=nn.ConvTranspose2d(12, 8, 2, 2), b=conv(3, 8),
                              f=fc(8, 4)),
}  # fmt: skip
# coupled units by layer: number of units, layers that a unit is scored by
EXPECTED = {
    "added": {"a": (8, "a c"), "b": (4, "b c")},
    "inception": {"one": (6, "one"), "three": (6, "three"), "up": (6, "up")},
    "transposed": {"t": (8, "t b")},
}
# target_flops, round_to, floor
LARGE = {"resnet18": (0.5, 1, 0.1), "mobilenet_v2": (0.5, 1, 0.1), "resnet20": (0.48, 1, 0.6)}


def build(name):
    """Return a network in float64, far from silent, and an example."""
    torch.manual_seed(0)
    if name in SMALL:
        return SMALL[name]().double().eval(), IMAGE
    family = families.get("resnet_cifar" if name == "resnet20" else "torchvision")
    return unsettle(family.build(name, num_classes=7)).double().eval(), torch.zeros(1, 3, 32, 32).double()


def silenced(model, pruned):
    """Return a copy of full width in which the removed channels are zero wherever they are made."""
    model = copy.deepcopy(model)
    for unit in pruned.units:
        for cut in unit.without({*range(unit.size)} - {*pruned.kept[unit.layer]}):
            module = model.get_submodule(cut.name)
            for tensor in (module.weight, module.bias) if not cut.reads else ():
                axis = int(isinstance(module, nn.ConvTranspose2d) and tensor is module.weight)
                if tensor is not None:
                    tensor.data.index_fill_(axis, torch.tensor(cut.indices), 0)
    return model


@pytest.mark.parametrize("name", [*SMALL, *LARGE])
def test_coupled_units_are_removed_exactly_counted_and_stored(name, tmp_path):
    model, example = build(name)
    target, step, floor = LARGE.get(name, (0.3, 2, 0.1))
    pruned = lpslim.prune(model, example, target_flops=target, coupled=True, round_to=step, floor=floor)
    coupled = {unit.layer: unit for unit in pruned.units if unit.coupled}
    assert any(len(pruned.kept[layer]) < unit.size for layer, unit in coupled.items())
    assert all(len(pruned.kept[layer]) >= unit.size // 2 for layer, unit in coupled.items())
    assert not pruned.left_alone
    assert pruned.checked == ("evaluation", "training")
    if name in EXPECTED:
        found = {n: (u.size, " ".join(member.layer for member in u.members)) for n, u in coupled.items()}
        assert found == EXPECTED[name]
    else:
        assert pruned.reached == pytest.approx(target, abs=0.003)

    images = torch.randn(2, *example.shape[1:], dtype=torch.float64)
    computed, expected = pruned.model(images), silenced(model, pruned)(images)
    assert (computed - expected).abs().max() <= 1e-10 * expected.abs().max()
    assert (computed - model(images)).abs().max() > 1e-6 * expected.abs().max()

    widths = [len(pruned.kept[unit.layer]) for unit in pruned.units]
    cost = candidates(model, example, pruned.units, adjust=0, floor=0).cost
    assert (pruned.dense, pruned.pruned) == (cost.dense, cost(widths))
    assert pruned.dense == count(model, example)
    assert pruned.pruned.macs == counted_by_torch(pruned.model, example)
    assert pruned.pruned.params == sum(p.numel() for p in pruned.model.parameters())

    lpslim.save(tmp_path / "network", pruned)
    assert torch.equal(lpslim.load(tmp_path / "network", model)(images), pruned.model(images))


def test_a_network_of_ours_is_stored_with_its_coupled_units(tmp_path):
    dense = storage.dense("resnet_cifar", "resnet20", (3, 32, 32), 10)
    units = families.get("resnet_cifar").coupled_units(dense.build(), torch.zeros(1, 3, 32, 32))
    (stream,) = (unit for unit in units if unit.coupled)
    assert (stream.layer, stream.size, len(stream.members)) == ("conv1", 16, 10)
    pruned = replace(dense, kept={unit.layer: [*range(1, unit.size, 2)] for unit in units})
    model, image = pruned.build().eval(), torch.randn(1, 3, 32, 32)
    # zeros are padded to 24 of the 64 channels on either side of the first stage's: they stay
    assert (model.conv1.out_channels, model.linear.in_features) == (8, 64 - 8)
    storage.write(tmp_path, model, pruned)
    assert torch.equal(storage.load(tmp_path)(image), model(image))


@pytest.mark.parametrize("norm", ["minmax", "uniform", "raw"])
def test_a_unit_is_scored_by_the_member_that_needs_it_most(norm):
    model, example = build("added")
    scores = {}
    for name in "abcd":
        own = [filters.abs().sum().item() for filters in model.get_submodule(name).weight]
        low, high = min(own), max(own)
        ranks = [sum(other < value for other in own) / len(own) for value in own]
        scores[name] = {"raw": own, "uniform": ranks, "minmax": [(v - low) / (high - low) for v in own]}[norm]
    a, b, c, d = scores.values()
    units = [(max(a[i], c[i]), "a", i) for i in range(8)]
    units += [(max(b[i], c[8 + i]), "b", i) for i in range(4)]
    lowest = sorted(units + [(d[i], "d", i) for i in range(6)])[:6]
    options = {"score_norm": norm, "coupled": True, "coupled_floor": 0, "floor": 0}
    pruned = lpslim.prune(model, example, ratio=6 / 18, **options)
    gone = {(name, i) for name, kept in pruned.kept.items() for i in {*range(len(scores[name]))} - {*kept}}
    assert gone == {(name, i) for _, name, i in lowest}


def test_floors_protection_and_criteria_that_cannot_score_every_member():
    model, example = build("added")
    pruned = lpslim.prune(model, example, ratio=0.9, coupled=True, coupled_floor=0.75, floor=0.5)
    assert {name: len(kept) for name, kept in pruned.kept.items()} == {"a": 6, "b": 3, "d": 3}
    assert lpslim.prune(model, example, ratio=0.5, coupled=True, protected=["b"]).kept.keys() == {"a", "d"}
    assert lpslim.prune(model, example, ratio=0.5, coupled=True, protected=["c"]).kept.keys() == {"d"}
    with pytest.raises(UserError, match=r"coupled_floor=1.*must be in \[0, 1\)"):
        lpslim.prune(model, example, ratio=0.5, coupled=True, coupled_floor=1)
    with pytest.raises(UserError, match="'c': no batch-norm with a scale"):
        lpslim.prune(model, example, ratio=0.5, coupled=True, criterion="bn_scale")
    model.c = nn.Sequential(model.c, nn.BatchNorm2d(12).double())
    with pytest.raises(UserError, match="'d': no batch-norm with a scale"):
        lpslim.prune(model, example, ratio=0.5, coupled=True, criterion="bn_scale")
    model, example = build("transposed")
    assert "t" in lpslim.prune(model, example, ratio=0.5, coupled=True, criterion="random").kept


def test_a_layer_of_two_kinds_of_units_is_stored(tmp_path):
    """Its channels are split, and each half is added to nothing of the other."""
    model = Net(lambda net, x: net.f((net.d((y := net.c(x).relu())[:, :6]) + net.e(y[:, 6:])).mean((2, 3))),
                c=conv(3, 12), d=conv(6, 8), e=conv(6, 8), f=fc(8, 4)).double()  # fmt: skip
    pruned = lpslim.prune(model, IMAGE, ratio=0.4, coupled=True)
    assert {"c", "c:2"} & pruned.kept.keys()
    assert any(":" in name for name in pruned.kept)
    lpslim.save(tmp_path / "network", pruned)
    image = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert torch.equal(lpslim.load(tmp_path / "network", model)(image), pruned.model.eval()(image))


def test_what_is_left_alone_is_told_in_few_lines():
    model = torchvision.models.shufflenet_v2_x0_5(num_classes=7).eval()  # its shuffles cannot be followed
    pruned = lpslim.prune(model, torch.zeros(1, 3, 32, 32), target_flops=0.05)
    assert len(pruned.kept) >= 10
    lines = [line for line in str(pruned).splitlines() if line.startswith("left alone")]
    assert 1 <= len(lines) <= 4
    assert len(pruned.left_alone) >= 15
    model = Net(split, c=conv(3, 16), d=conv(8, 6), e=conv(8, 6), f=fc(6, 4))
    pruned = lpslim.prune(model, IMAGE.float(), ratio=0.5, coupled=True)
    assert pruned.left_alone.keys() == {"c:1", "c:2"}  # a half of more channels than the other is none
    model, example = build("added")
    told = str(lpslim.prune(model, example, ratio=0.5))
    assert "left alone: 3 layers, a, ...: its channels are added" in told


def test_a_network_that_does_not_train_is_compared_in_evaluation_alone():
    def function(net, x):
        if net.training:
            raise ValueError("labels")
        return chain(net, x)

    pruned = lpslim.prune(Net(function, a=conv(3, 8), f=fc(8, 4)).double().eval(), IMAGE, ratio=0.5)
    assert pruned.checked == ("evaluation",)
    assert "compared in evaluation mode alone" in str(pruned)


def test_channels_in_windows_are_left_alone_before_they_multiply() -> None:
    """Walked on, a stream that is cut in windows again and again takes gigabytes."""
    model = torchvision.models.SwinTransformer([4, 4], 12, [2, 2], [2, 2], [2, 2], num_classes=4)
    image = torch.zeros(1, 3, 64, 64, dtype=torch.float64)
    found = lpslim.prune(model.double().eval(), image, ratio=0.3, coupled=True)
    assert any("cannot be told from positions" in reason for reason in found.left_alone.values())
    assert len(found.kept["features.1.0.mlp.0"]) < 48
    assert found.checked == ("evaluation", "training")
