"""The library's prune: what is asked for is met, the original stays, bad requests are refused."""

import copy

import pytest
import torch

from lpslim.base.errors import UserError
from lpslim.pruning.cost import count
from lpslim.pruning.prune import prune

SIZE = 16
EXAMPLE = torch.zeros(1, 3, SIZE, SIZE)
WIDTHS = 3 * (16 + 32 + 64)  # the prunable units of ResNet-20


@pytest.fixture
def model(network):
    return network("resnet_cifar", "resnet20", (3, SIZE, SIZE), classes=7)


def test_prune_meets_the_target_and_leaves_the_original_alone(model):
    frozen = ("conv1", "layer")
    expected = prune(model, EXAMPLE, target_flops=0.5)
    before = copy.deepcopy(model.state_dict())
    for name, parameter in model.named_parameters():
        parameter.requires_grad = not name.startswith(frozen)
    pruned = prune(model, EXAMPLE, target_flops=0.5)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert (len(pruned.units), pruned.kept) == (9, expected.kept)
    assert (pruned.dense, pruned.pruned) == (count(model, EXAMPLE), count(pruned.model, EXAMPLE))
    assert 1 - pruned.pruned.macs / pruned.dense.macs == pytest.approx(0.5, abs=0.003)
    assert not pruned.model.training
    for name, parameter in pruned.model.named_parameters():
        assert parameter.requires_grad is not name.startswith(frozen)


@pytest.mark.parametrize(("budget", "asked"), [("target_flops", 0.4), ("target_params", 0.4), ("ratio", 0.7)])
def test_what_was_asked_for_and_what_was_reached_are_shown(model, budget, asked):
    pruned = prune(model, EXAMPLE, round_to=8, **{budget: asked})
    cost, dense = count(pruned.model, EXAMPLE), count(model, EXAMPLE)
    units = sum(map(len, pruned.kept.values()))
    shares = {"target_flops": cost.macs / dense.macs, "target_params": cost.params / dense.params,
              "ratio": units / WIDTHS}  # fmt: skip
    assert pruned.reached == 1 - shares[budget]
    assert pruned.reached != pytest.approx(asked, abs=0.001)
    assert all(len(kept) % 8 == 0 for kept in pruned.kept.values())
    drop = 100 * (1 - shares["target_flops"])
    lines = str(pruned).splitlines()
    assert f"multiply-adds: {dense.macs:,} -> {cost.macs:,} (-{drop:.2f} %)" in lines
    assert lines[-1] == f"{budget}={asked}: reached {1 - shares[budget]:.4f}"


def test_protected_layers_keep_every_unit(model):
    protected = "layer3"
    pruned = prune(model, EXAMPLE, target_params=0.2, protected=[protected])
    assert not any(layer.startswith(protected) for layer in pruned.kept)
    assert pruned.model.get_submodule("layer3.1.conv1").out_channels == 64
    assert pruned.reached == pytest.approx(0.2, abs=0.003)


def test_one_name_may_be_protected_as_it_is(model):
    assert prune(model, EXAMPLE, ratio=0.3, protected="layer3").kept.keys() == {
        layer for layer in prune(model, EXAMPLE, ratio=0.3).kept if not layer.startswith("layer3")
    }


def test_criteria_that_run_the_network_get_batches(model):
    batches = [(torch.randn(4, 3, SIZE, SIZE), torch.randint(7, (4,)))]
    options = {"ratio": 0.3, "score_norm": "uniform"}
    scored = prune(model, EXAMPLE, criterion="taylor", batches=batches, **options)
    by_weights = prune(model, EXAMPLE, **options)
    assert scored.pruned == by_weights.pruned
    assert scored.kept != by_weights.kept


NAN = [(torch.full((2, 3, SIZE, SIZE), torch.nan), torch.tensor([0, 1]))]
LAYERS = ["layer1", "layer2", "layer3"]
REFUSED = {
    "no budget": ({}, "give one of target_flops, target_params, ratio, got none"),
    "two budgets": ({"ratio": 0.5, "target_flops": 0.5}, "got target_flops, ratio"),
    "percent": ({"target_flops": 50.0}, "target_flops=50.0: must be above 0 and below 1"),
    "floor": ({"ratio": 0.5, "floor": 1.0}, "floor=1.0, round_to=1: must be"),
    "norm": ({"ratio": 0.5, "score_norm": "layer"}, "score_norm=layer: must be one of minmax, uniform, raw"),
    "criterion": ({"ratio": 0.5, "criterion": "luck"}, "'luck' is not one of"),
    "no batches": ({"ratio": 0.5, "criterion": "hrank"}, "batches: "),
    "NaN scores": (
        {"ratio": 0.5, "criterion": "taylor", "batches": NAN},
        "criterion=taylor: layer 'layer1.0",
    ),
    "NaN maps": (
        {"ratio": 0.5, "criterion": "hrank", "batches": NAN},
        "batches: the feature maps of 'layer1.0.bn1' are",
    ),
    "protected": ({"ratio": 0.5, "protected": ["layer9"]}, "protected: the network has no 'layer9'"),
    "everything": ({"ratio": 0.5, "protected": LAYERS}, "no layer can lose channels"),
    "too much": ({"target_flops": 0.95}, "target_flops=0.95: must be at most 0.9072"),
    "too much in steps": ({"target_flops": 0.6, "round_to": 32}, "round_to=32"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_prune_refuses(model, options, message):
    with pytest.raises(UserError) as refused:
        prune(model, EXAMPLE, **options)
    assert message in str(refused.value)
