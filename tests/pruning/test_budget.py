"""Candidates of a dense network: what a budget selects, protected layers, and targets beyond reach."""

import re

import pytest
import torch

from lpslim.base.errors import UserError
from lpslim.models import family as families
from lpslim.pruning import graph, selection
from lpslim.pruning.budget import Budget, candidates
from lpslim.pruning.cost import count
from lpslim.pruning.criteria import score


@pytest.fixture
def dense(network):
    model, example = network("resnet_cifar", "resnet20", (3, 16, 16)), torch.zeros(1, 3, 16, 16)
    units = families.get("resnet_cifar").units(model, example)
    return candidates(model, example, units, adjust=0.45, floor=0.1), model, example


@pytest.mark.parametrize(
    ("budget", "drop", "asked", "tolerance"),
    [
        (Budget(target_flops=0.4), "flops_drop", 0.4, 0.003),
        (Budget(target_params=0.4, ratio=0.9), "params_drop", 0.4, 0.003),  # a target wins over the ratio
        (Budget(target_params=150_000), "params_drop", 1 - 150_000 / 269_722, 0.003),
        (Budget(target_flops=0.4, round_to=8), "flops_drop", 0.4, 0.05),
    ],
)
def test_what_is_selected_meets_the_target_and_costs_what_it_says(dense, budget, drop, asked, tolerance):
    found, model, example = dense
    scores = [selection.minmax(s) for s in score("magnitude", model, found.units).values()]
    found.check(budget)
    kept = found.select(scores, budget)
    counts = [len(kept[unit.layer]) for unit in found.units]
    assert getattr(found.cost, drop)(counts) == pytest.approx(asked, abs=tolerance)
    assert all(n % budget.round_to == 0 for n in counts)
    graph.prune(model, example, kept)
    assert count(model, example) == found.cost(counts)


def test_protected_layers_keep_every_unit(dense):
    found, *_ = dense
    free = found.without(["layer1", "layer3.*.conv1"])
    assert [unit.layer for unit in free.units] == [f"layer2.{i}.conv1" for i in range(3)]
    assert free.cost.dense == found.cost.dense
    assert free.cost([1, 1, 1]) == found.cost([16, 16, 16, 1, 1, 1, 64, 64, 64])
    assert free.least == [3, 3, 3]
    for protected, message in ("layer9", r"protected=layer9: .*layer1\.0\.conv1"), ("layer*", "no layer"):
        with pytest.raises(UserError, match=message):
            found.without([protected])
    rest = found.excluding({"layer1", "layer1.0.conv1"})  # names, no patterns
    assert [unit.layer for unit in rest.units] == [unit.layer for unit in found.units[1:]]


@pytest.mark.parametrize("round_to", [1, 16])
@pytest.mark.parametrize("target", ["target_flops=0.95", "target_params=0.97", "target_params=5"])
def test_a_target_beyond_reach_names_the_last_that_is_within(dense, target, round_to):
    found, key, beyond = dense[0], target.split("=")[0], float(target.split("=")[1])
    with pytest.raises(UserError, match=rf"^{target}: must be at (most|least) ") as refused:
        found.check(Budget(**{key: beyond}, round_to=round_to))
    assert ("round_to=16" in str(refused.value)) == (round_to == 16)
    limit = float(re.search(r"must be at \w+ ([\d.]+)", str(refused.value))[1])
    found.check(Budget(**{key: limit}, round_to=round_to))
    further = limit + 0.004 if beyond < 1 else limit - 0.004 * found.cost.dense.params
    with pytest.raises(UserError):
        found.check(Budget(**{key: further}, round_to=round_to))
