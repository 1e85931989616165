"""Single weights: which go, what that saves, and what cannot be asked for."""

import pytest
import torch
from torch import nn

from lpslim.base.errors import UserError
from lpslim.pruning import unstructured
from lpslim.pruning.budget import Budget
from lpslim.pruning.cost import count, layer_costs
from lpslim.pruning.units import regularised_weights

EXAMPLE = torch.zeros(1, 1, 4, 4)


def test_the_penalty_acts_on_all_kinds_of_layers_and_once_on_a_weight_that_they_share():
    first, second = nn.Conv1d(1, 1, 3), nn.Conv1d(1, 1, 3)
    second.weight = first.weight
    model = nn.Sequential(first, nn.BatchNorm1d(1), second, nn.ConvTranspose1d(1, 2, 3), nn.Linear(2, 2))
    assert list(regularised_weights(model)) == ["0.weight", "3.weight", "4.weight"]


@pytest.fixture
def model():
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
    return nn.Sequential(conv, norm, nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


@pytest.mark.parametrize(
    ("Z", "W", "prices", "amount", "stays"),
    [
        ({"a": [3.0, -1.0, 0.2], "b": [0.1, -5.0]}, None, {"a": 1, "b": 1}, 3.9, {"a": [0], "b": [1]}),
        ({"a": [0.0, 0.0, 0.0, 1.0]}, {"a": [0.3, 0.1, 0.2, 0.0]}, {"a": 1}, 2, {"a": [0, 3]}),  # ties: by W
        ({"a": [*range(100)]}, None, {"a": 1}, 0.29 * 100, {"a": [*range(29, 100)]}),  # below 29, in binary
        ({"a": [0.1, 0.4], "b": [0.2, 0.3]}, None, {"a": 10, "b": 1}, 11.5, {"a": [1], "b": [1]}),  # not more
    ],
)
def test_the_smallest_go_first_over_all_tensors_until_the_amount_is_reached(Z, W, prices, amount, stays):
    z, w = ({name: torch.tensor(values) for name, values in (part or Z).items()} for part in (Z, W))
    masks = unstructured.smallest(z, w, prices, amount)
    assert {name: mask.nonzero().flatten().tolist() for name, mask in masks.items()} == stays


def test_what_remains_counts_the_weights_that_are_not_zero(model):
    layers, weights = layer_costs(model, EXAMPLE), regularised_weights(model)
    dense = unstructured.remaining(model, layers)
    assert dense == count(model, EXAMPLE)
    masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    masks["0.weight"].view(-1)[:5] = False  # each is used at 16 positions
    masks["4.weight"].view(-1)[:7] = False
    assert unstructured.positions(layers) == {"0.weight": 16.0, "1.weight": 0.0, "4.weight": 1.0}
    for name, weight in weights.items():
        weight.detach().mul_(masks[name])
    left = unstructured.remaining(model, layers)
    assert (dense.macs - left.macs, dense.params - left.params) == (5 * 16 + 7, 12)
    assert all(((weight != 0) == masks[name]).all() for name, weight in weights.items())


def test_targets_beyond_the_weights_are_refused(model):
    most = (36 + 192) / (36 + 4 + 8 + 192 + 3)
    for budget in (Budget(), Budget(target_flops=0.99), Budget(target_params=0.93), Budget(target_params=16)):
        unstructured.check(model, budget)
    for target, limit in ((0.94, f"below {most:.4f}"), (15, "above 15"), (243, "below the 243")):
        with pytest.raises(UserError, match=rf"^target_params={target}: must be {limit}"):
            unstructured.check(model, Budget(target_params=target))
