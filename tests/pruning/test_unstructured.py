"""Single weights: which go, what that saves, and that they stay zero."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lpslim.pruning import unstructured
from lpslim.pruning.cost import count, layer_costs
from lpslim.pruning.units import regularised_weights
from lpslim.training.regularizers.bn_l1 import ScaleSparsifier


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )


EXAMPLE = torch.zeros(1, 1, 4, 4)


def test_the_smallest_go_first_over_all_tensors():
    Z = {"a": torch.tensor([3.0, -1.0, 0.2]), "b": torch.tensor([[0.1, -5.0]])}
    masks = masking.smallest(Z, Z, {"a": 1.0, "b": 1.0}, 3.9)
    assert masks["a"].tolist() == [True, False, False]
    assert masks["b"].tolist() == [[False, True]]


def test_ties_in_z_are_broken_by_w():
    Z = {"a": torch.tensor([0.0, 0.0, 0.0, 1.0])}
    W = {"a": torch.tensor([0.3, 0.1, 0.2, 0.0])}
    assert masking.smallest(Z, W, {"a": 1.0}, 2)["a"].tolist() == [True, False, False, True]


def test_a_budget_is_spent_by_price_and_never_exceeded():
    Z = {"dear": torch.tensor([0.1, 0.4]), "cheap": torch.tensor([0.2, 0.3])}
    masks = masking.smallest(Z, Z, {"dear": 10.0, "cheap": 1.0}, 11.5)
    assert masks["dear"].tolist() == [False, True]
    assert masks["cheap"].tolist() == [False, True]


def test_remaining_counts_what_is_not_zero(model):
    layers = layer_costs(model, EXAMPLE)
    assert masking.remaining(model, layers) == count(model, EXAMPLE)
    model[0].weight.data.view(-1)[:5] = 0  # each is used at 16 positions
    model[4].weight.data.view(-1)[:7] = 0
    dense, left = count(model, EXAMPLE), masking.remaining(model, layers)
    assert dense.macs - left.macs == 5 * 16 + 7
    assert dense.params - left.params == 12


def test_masked_weights_stay_exactly_zero_while_the_others_move(model):
    weights = regularised_weights(model)
    before = {name: w.detach().clone() for name, w in weights.items()}
    masks = masking.smallest(before, before, dict.fromkeys(before, 1.0), 100)
    masking.apply(model, masks)
    keeper = masking.MaskKeeper(model)
    keeper.begin()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    for step in range(5):
        optimizer.zero_grad()
        F.cross_entropy(model(torch.randn(8, 1, 4, 4)), torch.randint(3, (8,))).backward()
        keeper.after_backward()
        optimizer.step()
        keeper.after_step(step + 1, 5)
    for name, weight in weights.items():
        assert (weight[~masks[name]] == 0).all()
        assert (weight[masks[name]] != before[name][masks[name]]).all()
    assert sum(int((~mask).sum()) for mask in masks.values()) == 100


def test_the_scale_penalty_is_the_gradient_of_l1(model):
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.5, -2.0, 0.0, 1.0]))
    images, labels = torch.randn(8, 1, 4, 4), torch.randint(3, (8,))
    loss = F.cross_entropy(model(images), labels) + 0.01 * model[1].weight.abs().sum()
    expected = torch.autograd.grad(loss, model[1].weight)[0]
    F.cross_entropy(model(images), labels).backward()
    others = {name: p.grad.clone() for name, p in model.named_parameters() if name != "1.weight"}
    ScaleSparsifier(model, lamb=0.01).after_backward()
    assert torch.allclose(model[1].weight.grad, expected, atol=1e-7)
    assert all(torch.equal(dict(model.named_parameters())[name].grad, g) for name, g in others.items())
