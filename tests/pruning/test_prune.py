"""Networks that the suite does not name: what is found in them, and that removing it is exact."""

import copy

import pytest
import torch
import torchvision
from torch import nn

import lpslim
from lpslim.base.errors import UserError
from lpslim.pruning import graph
from lpslim.pruning.cost import CostModel, count, layer_costs
from tests.conftest import unsettle
from tests.unit.test_surgery import assert_same_function

# prunable layers; some layer that keeps its width, and why
FOREIGN = {
    "densenet121": (58, "features.denseblock1.denselayer1.conv2"),  # concatenated
    "mobilenet_v2": (20, "features.2.conv.2"),  # on the residual stream; the depthwise ones go along
    "regnet_x_400mf": (45, "trunk_output.block1.block1-0.f.c.0"),  # convolutions in groups
    "regnet_y_400mf": (49, "trunk_output.block1.block1-0.f.c.0"),  # the same, with gates
    "convnext_tiny": (18, "features.1.0.block.0"),  # linear layers on the last axis
    "squeezenet1_1": (9, "features.3.expand1x1"),  # no batch-norm
    "mobilenet_v3_small": (23, "features.2.block.2.0"),  # hard swish, gates
}
SIZE = 64
IMAGES = torch.randn(2, 3, SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def foreign(name):
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, num_classes=7)
    return unsettle(model).double().eval()


def silenced(model, units, kept):
    """A copy of full width in which the removed channels are zero wherever they are made."""
    model = copy.deepcopy(model)
    for each in units:
        gone = torch.ones(each.groups, each.size, dtype=torch.bool)
        gone[:, kept[each.layer]] = False
        for name in each.producers:
            for tensor in (model.get_submodule(name).weight, model.get_submodule(name).bias):
                if tensor is not None:
                    tensor.data[gone.flatten()] = 0
    return model


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_found_can_be_removed_exactly(name, random_kept):
    model = foreign(name)
    units = surgery.discover(model, IMAGES[:1])
    layers, stream = FOREIGN[name]
    assert len(units) == layers
    assert stream not in {layer for each in units for layer in (each.layer, *each.producers)}
    kept = random_kept(units, seed=1)
    cost = CostModel(layer_costs(model, IMAGES[:1]), units, sum(p.numel() for p in model.parameters()))
    reference = silenced(model, units, kept)
    surgery.prune(model, IMAGES[:1], kept)
    assert_same_function(model, reference, IMAGES)
    assert cost([len(kept[each.layer]) for each in units]) == count(model, IMAGES[:1])


def small():
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=7).eval()


EXAMPLE = torch.zeros(1, 3, SIZE, SIZE)


def test_prune_meets_the_target_and_leaves_the_original_alone():
    model = small()
    before = copy.deepcopy(model.state_dict())
    pruned = lpslim.prune(model, EXAMPLE, target_flops=0.5)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert pruned.dense == count(model, EXAMPLE)
    assert pruned.pruned == count(pruned.model, EXAMPLE)
    assert 1 - pruned.pruned.macs / pruned.dense.macs == pytest.approx(0.5, abs=0.003)
    assert "multiply-adds: 148.05 M -> 74.02 M (-50.01 %)" in str(pruned)
    assert not pruned.model.training


@pytest.mark.parametrize("trainable", [("layer4", "fc"), ("nothing",)])
def test_frozen_layers_are_pruned_too(trainable):
    model = small()
    expected = lpslim.prune(model, EXAMPLE, target_flops=0.3)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith(trainable)
    pruned = lpslim.prune(model, EXAMPLE, target_flops=0.3)
    assert (len(pruned.units), pruned.kept) == (8, expected.kept)
    for name, parameter in pruned.model.named_parameters():
        assert parameter.requires_grad is name.startswith(trainable)


@pytest.mark.parametrize("protected", ["layer3", "layer3.1.conv1"])
def test_protected_layers_keep_every_unit(protected):
    pruned = lpslim.prune(small(), EXAMPLE, target_params=0.3, protected=[protected])
    assert not any(layer.startswith(protected) for layer in pruned.kept)
    assert pruned.model.get_submodule("layer3.1.conv1").out_channels == 256
    assert 1 - pruned.pruned.params / pruned.dense.params == pytest.approx(0.3, abs=0.003)


def test_widths_are_multiples_of_eight():
    pruned = lpslim.prune(small(), EXAMPLE, target_flops=0.4, round_to=8)
    assert all(len(kept) % 8 == 0 for kept in pruned.kept.values())
    assert any(len(kept) < each.size for kept, each in zip(pruned.kept.values(), pruned.units, strict=True))
    assert abs(1 - pruned.pruned.macs / pruned.dense.macs - 0.4) < 0.02


@pytest.mark.parametrize(("budget", "asked"), [("target_flops", 0.4), ("target_params", 0.4), ("ratio", 0.7)])
def test_what_was_asked_for_and_what_was_reached_are_shown(budget, asked):
    pruned = lpslim.prune(small(), EXAMPLE, round_to=32, **{budget: asked})
    left, dense = (
        {"target_flops": cost.macs, "target_params": cost.params, "ratio": units}[budget]
        for cost, units in (
            (count(pruned.model, EXAMPLE), sum(map(len, pruned.kept.values()))),
            (count(small(), EXAMPLE), 2 * (64 + 128 + 256 + 512)),
        )
    )
    assert pruned.reached == 1 - left / dense
    assert pruned.reached != pytest.approx(asked, abs=0.001)
    assert str(pruned).splitlines()[-1] == f"{budget}={asked}: reached {1 - left / dense:.4f}"


@pytest.mark.parametrize(("target", "round_to"), [(0.99, 8), (0.9, 32)])
def test_a_target_beyond_what_widths_allow_is_refused(target, round_to):
    model = torchvision.models.mobilenet_v2().eval()
    with pytest.raises(
        UserError, match=rf"target {100 * target:.2f} %.* and round_to={round_to} 0\.00 to (\S+) %"
    ) as it:
        lpslim.prune(model, EXAMPLE, target_flops=target, round_to=round_to)
    most = float(str(it.value).split()[-5]) / 100
    pruned = lpslim.prune(model, EXAMPLE, target_flops=most, round_to=round_to)
    assert pruned.reached == pytest.approx(most, abs=1e-4)


def test_units_of_grouped_convolutions_are_rounded_by_channels():
    pruned = lpslim.prune(foreign("regnet_x_400mf"), IMAGES[:1], target_flops=0.3, round_to=8)
    for each in pruned.units:
        channels = len(pruned.kept[each.layer]) * each.groups
        assert channels % 8 == 0 or channels == each.size * each.groups


def test_criteria_that_look_at_maps_get_images():
    model = small()
    images = [torch.randn(4, 3, SIZE, SIZE)]
    by_maps = lpslim.prune(model, EXAMPLE, ratio=0.3, criterion="hrank", across="uniform", batches=images)
    by_weights = lpslim.prune(model, EXAMPLE, ratio=0.3, across="uniform")
    assert by_maps.pruned == by_weights.pruned
    assert by_maps.kept != by_weights.kept


REFUSED = {
    "no budget": ({}, "give one of target_flops, target_params, ratio, got none"),
    "two budgets": ({"ratio": 0.5, "target_flops": 0.5}, "got target_flops, ratio"),
    "percent": ({"target_flops": 50.0}, "target_flops=50.0: must be above 0 and below 1"),
    "floor": ({"ratio": 0.5, "floor": 1.0}, "floor=1.0, round_to=1: must be"),
    "across": ({"ratio": 0.5, "across": "layers"}, "across='layers': must be one of minmax, uniform, raw"),
    "criterion": ({"ratio": 0.5, "criterion": "luck"}, "criteria: 'luck' is not one of"),
    "protected": ({"ratio": 0.5, "protected": ["layer9"]}, "protected: the network has no 'layer9'"),
    "everything": (
        {"ratio": 0.5, "protected": ["layer1", "layer2", "layer3", "layer4"]},
        "no layer can lose channels",
    ),
    "too much": ({"target_flops": 0.95}, "cannot be met within 0.3 points"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_prune_refuses(case):
    options, message = REFUSED[case]
    with pytest.raises(UserError) as refused:
        lpslim.prune(small(), EXAMPLE, **options)
    assert message in str(refused.value)


def test_a_network_that_cannot_be_traced_is_refused():
    with pytest.raises(UserError, match="ShuffleNetV2: Torch-Pruning cannot follow its channels"):
        lpslim.prune(torchvision.models.shufflenet_v2_x0_5(), EXAMPLE, ratio=0.5)


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU()
        )
        self.head = nn.Linear(4 * 4 * 4, 3)

    def forward(self, x):
        return self.head(self.body(x).flatten(1))


def test_ones_own_network_comes_back_from_its_folder(tmp_path):
    example = torch.randn(1, 1, 8, 8)
    pruned = lpslim.prune(Own().eval(), example, ratio=0.5)
    lpslim.save(tmp_path / "own", pruned)
    fresh = Own()
    loaded = lpslim.load(tmp_path / "own", model=fresh)
    assert torch.equal(loaded(example), pruned.model(example))
    assert fresh.body[0].out_channels == 6
    with pytest.raises(
        UserError, match=r"Own is not a network of lpslim: load\(folder, model=<the dense one>\)"
    ):
        lpslim.load(tmp_path / "own")
    with pytest.raises(FileExistsError, match="holds a network already"):
        lpslim.save(tmp_path / "own", pruned)
    with pytest.raises(UserError, match=r"layer 'body\.0': the network has no convolution or linear layer"):
        lpslim.load(tmp_path / "own", model=nn.Sequential(nn.Conv2d(1, 2, 1)))


@pytest.mark.parametrize("name", ["vit_b_16", "swin_t"])
def test_attention_that_the_trace_does_not_see_is_refused_by_name(name):
    model = torchvision.models.get_model(name, weights=None, num_classes=10)
    with pytest.raises(UserError, match="is not called by itself: its multiply-adds cannot be counted"):
        lpslim.prune(model, torch.zeros(1, 3, 224, 224), ratio=0.3)


class Twice(nn.Module):
    """A layer called twice, and two that have one weight."""

    def __init__(self):
        super().__init__()
        self.stem, self.shared, self.head = nn.Conv2d(1, 32, 3), nn.Conv2d(32, 32, 1), nn.Conv2d(32, 16, 1)
        self.one, self.other, self.out = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.other.weight = self.one.weight

    def forward(self, x):
        x = torch.relu(self.shared(torch.relu(self.shared(torch.relu(self.stem(x))))))
        x = torch.relu(self.head(x)).mean((2, 3))
        return self.out(torch.relu(self.other(torch.relu(self.one(x)))))


def test_a_network_with_shared_layers_is_pruned_saved_and_loaded(tmp_path):
    model, example = Twice().eval(), torch.randn(1, 1, 8, 8)
    pruned = lpslim.prune(model, example, ratio=0.5)
    assert pruned.kept.keys() == {"stem"}  # shared goes along; what head feeds is tied
    assert pruned.model.shared.weight.shape == (16, 16, 1, 1)
    assert pruned.dense == count(model, example)
    assert pruned.pruned == count(pruned.model, example)
    lpslim.save(tmp_path, pruned)
    loaded = lpslim.load(tmp_path, model=Twice())
    assert loaded.one.weight is loaded.other.weight
    assert torch.equal(loaded(example), pruned.model(example))
    assert pruned.model.state_dict()["one.weight"].data_ptr() == pruned.model.one.weight.data_ptr()
