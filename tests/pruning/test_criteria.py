"""Every criterion against its formula, written out slowly."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from lpslim.base import registry
from lpslim.base.errors import UserError
from lpslim.models import family as families
from lpslim.pruning import criteria
from lpslim.pruning.budget import candidates
from lpslim.pruning.criteria import chip, mean_over_images, taylor
from lpslim.pruning.graph import Graph
from lpslim.pruning.units import Prunable, Units
from lpslim.training.callbacks import ChannelADMM


@pytest.fixture
def scene(network):
    model = network("vgg", "vgg_small", (3, 16, 16))
    units = Graph(model, torch.zeros(1, 3, 16, 16)).units(families.get("vgg").prunable(model))
    return model, units, labelled(3, 16, 16)


def labelled(*shape, classes=10, sizes=(3, 2)):
    generator = torch.Generator().manual_seed(5)
    return [
        (torch.randn(n, *shape, generator=generator), torch.randint(classes, (n,), generator=generator))
        for n in sizes
    ]


def scored(*arguments):
    """Return the scores in the order of the units."""
    return [*criteria.score(*arguments).values()]


@pytest.mark.parametrize("name", registry.choices("pruning.criteria"))
def test_every_criterion_scores_every_unit_and_leaves_no_trace(name, scene):
    model, units, batches = scene
    model.train()
    model.features[1].eval().weight.requires_grad = False
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    scores = scored(name, model, units, iter(batches))
    assert [s.shape for s in scores] == [(unit.size,) for unit in units]
    assert all(s.dtype == torch.float64 and s.isfinite().all() and not s.requires_grad for s in scores)
    assert all(s.max() > s.min() for s in scores)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["features.1.weight"]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_scores_of_weights_by_their_formulas(scene):
    model, units, _ = scene
    found = {name: scored(name, model, units) for name in ("magnitude", "fpgm", "bn_scale")}
    for i, unit in enumerate(units):
        filters = model.get_submodule(unit.layer).weight.detach().double().flatten(1).numpy()
        norm = model.features[int(unit.layer.split(".")[1]) + 1]
        sums = [sum(abs(w) for w in row) for row in filters]  # the bias does not count
        distances = [sum(np.sqrt(((a - b) ** 2).sum()) for b in filters) for a in filters]
        assert found["magnitude"][i].tolist() == pytest.approx(sums, rel=1e-12)
        assert found["fpgm"][i].tolist() == pytest.approx(distances, rel=1e-10)
        assert found["bn_scale"][i].tolist() == norm.weight.abs().tolist()


@pytest.mark.parametrize(("family", "name"), [("vgg", "vgg_small"), ("resnet_cifar", "resnet20")])
def test_the_group_norm_is_the_size_by_which_the_admm_on_channels_ranks(family, name, network):
    shape = (3, 16, 16)
    model, example = network(family, name, shape), torch.zeros(1, *shape)
    with torch.no_grad():
        for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.bias.uniform_(0.5, 1.5)  # a shift near zero has a scale of its own in the ADMM
    units = families.get(family).units(model, example)
    every = candidates(model, example, units, adjust=0.1, floor=0.1)
    admm = ChannelADMM(model, example, target_flops=0.3, epochs=1, candidates=every)
    admm.begin()
    sizes = admm.admm.sizes(admm.admm.weights).split([unit.size for unit in units])
    for own, size in zip(scored("group_norm", model, units), sizes, strict=True):
        torch.testing.assert_close(own, size.square().double(), rtol=1e-6, atol=0)


def test_random_follows_the_global_generator(scene):
    model, units, _ = scene
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(torch.cat(scored("random", model, units)))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert 0 <= draws[0].min() < draws[0].max() < 1


def nuclear_drops(rows):
    """CHIP as it is defined: one row removed, singular values anew."""
    whole = np.linalg.svd(rows, compute_uv=False).sum()
    others = (np.delete(rows, i, axis=0) for i in range(len(rows)))
    return [whole - (np.linalg.svd(rest, compute_uv=False).sum() if len(rest) else 0) for rest in others]


def test_scores_of_maps_by_their_formulas(scene):
    model, units, batches = scene
    found = {name: scored(name, model, units, batches) for name in ("hrank", "chip")}
    for i, unit in enumerate(units):
        first = model.features[: int(unit.layer.split(".")[1]) + 3]  # to convolution, batch-norm, ReLU
        maps = torch.cat([first(images).detach() for images, _ in batches]).numpy()
        ranks = [np.mean([np.linalg.matrix_rank(image) for image in maps[:, j]]) for j in range(unit.size)]
        rows = maps.astype(np.float64).reshape(len(maps), unit.size, -1)
        drops = np.mean([nuclear_drops(image) for image in rows], axis=0)
        assert found["hrank"][i].tolist() == pytest.approx(ranks, abs=1e-12)
        assert found["chip"][i].numpy() == pytest.approx(drops, abs=2e-8 * np.linalg.norm(rows))


def test_maps_of_a_layer_without_batch_norm_are_its_own_whatever_follows():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 2, 1))
    images, units = torch.randn(5, 3, 6, 6), [Units("0", 4, False, ("0",), ("2",))]
    (means,) = mean_over_images(model, units, [(images, None)], lambda maps: maps.mean(dim=(2, 3)))
    torch.testing.assert_close(means.float(), model[0](images).relu().mean(dim=(0, 2, 3)))


@given(rows=st.integers(1, 9), side=st.integers(1, 4), rank=st.integers(1, 9),
       scale=st.sampled_from([1e-3, 1.0, 1e4]), seed=st.integers(0, 10_000))  # fmt: skip
def test_chip_has_all_drops_from_one_eigendecomposition(rows, side, rank, scale, seed):
    draw = np.random.default_rng(seed)
    matrix = draw.normal(size=(rows, rank)) @ draw.normal(size=(rank, side * side)) * scale
    matrix[draw.random(rows) < 0.2] = 0  # dead channels
    drops = chip.independence(torch.from_numpy(matrix).view(1, rows, side, side))[0].numpy()
    assert drops == pytest.approx(np.array(nuclear_drops(matrix)), abs=5e-8 * np.linalg.norm(matrix) + 1e-300)


def test_chip_in_chunks_and_of_orthogonal_and_dead_channels(monkeypatch):
    maps = torch.zeros(1, 5, 2, 2, dtype=torch.float64)
    for i, norm in enumerate((3.0, 2.0, 0.5)):
        maps.view(1, 5, 4)[0, i, i] = norm
    assert chip.independence(maps)[0].tolist() == pytest.approx([3.0, 2.0, 0.5, 0, 0], abs=1e-7)
    assert chip.independence(torch.zeros(2, 3, 2, 2)).tolist() == [[0.0] * 3] * 2
    maps = torch.rand(7, 6, 4, 4)
    whole = chip.independence(maps)
    monkeypatch.setattr(chip, "CHUNK", 1)
    assert torch.allclose(chip.independence(maps), whole, rtol=1e-13, atol=0)


# ---- Taylor, against gates that are really there


def gated(model, module, unit, batches, loss=F.cross_entropy):
    """Multiply a gate per unit into a module's output, and return its mean squared gradient."""
    gates = torch.ones(unit.size, dtype=torch.float64, requires_grad=True)
    channels = gates.repeat(unit.groups)  # one channel of each group

    def hook(_, __, out):
        return out * channels.view(-1, *[1] * (out.ndim - 2)).to(out.dtype)

    handle = model.get_submodule(module).register_forward_hook(hook)
    squares = [torch.autograd.grad(loss(model(x), y), gates)[0].square() for x, y in batches]
    handle.remove()
    return torch.stack(squares).mean(dim=0)


def in_double(batches):
    return [(inputs.double(), labels) for inputs, labels in batches]


def test_taylor_is_the_squared_gradient_of_a_gate_behind_batch_norm(scene):
    model, units, batches = scene
    model, batches = model.double(), in_double(batches)
    found = scored("taylor", model.train(), units, batches)  # in evaluation mode all the same
    model.eval()
    for unit, scores in zip(units, found, strict=True):
        norm = f"features.{int(unit.layer.split('.')[1]) + 1}"
        torch.testing.assert_close(scores, gated(model, norm, unit, batches), rtol=1e-9, atol=1e-20)


class Grouped(nn.Module):
    """A convolution in two groups with batch-norm, one without, and a hidden layer: on 4 x 4 images."""

    def __init__(self):
        super().__init__()
        self.first, self.middle = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1, groups=2)
        self.norm = nn.BatchNorm2d(8)
        self.hidden, self.out = nn.Linear(32, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = torch.relu(self.norm(self.middle(torch.tanh(self.first(x)))))
        return self.out(torch.relu(self.hidden(x.flatten(1))))


def test_taylor_without_batch_norm_in_groups_and_with_a_loss_of_its_own():
    torch.manual_seed(0)
    model, batches = Grouped().double().eval(), in_double(labelled(3, 4, 4, classes=3))
    units = Graph(model, batches[0][0][:1]).units([Prunable(n) for n in ("first", "middle", "hidden")])
    assert [unit.groups for unit in units] == [2, 2, 1]

    def loss(outputs, labels):
        return (outputs[:, 0] - labels).square().mean()

    scores = scored("taylor", model, units, batches, loss)
    for unit, module, ours in zip(units, ("first", "norm", "hidden"), scores, strict=True):
        torch.testing.assert_close(ours, gated(model, module, unit, batches, loss), rtol=1e-9, atol=1e-20)
    per_channel = taylor.score(model, units, batches, loss)
    assert [len(s) for s in per_channel] == [8, 8, 6]


class Attention(nn.Module):
    """Two heads of three channels over the rows of an image."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(5, 6) for _ in range(3))
        self.out = nn.Linear(6, 4)

    def forward(self, x):
        qkv = [part(x).unflatten(-1, (2, 3)).transpose(1, 2) for part in (self.query, self.key, self.value)]
        return self.out(F.scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2)).mean(1)


PARTS = ("query", "key", "value")
WEIGHTS = (("query", 0), ("key", 0), ("value", 0), ("out", 1))
HEADS = Units("query", 2, False, PARTS, ("out",), head_dim=3, scored_by=WEIGHTS)


def test_taylor_and_magnitude_of_a_head_are_those_of_all_its_weights():
    torch.manual_seed(0)
    model, batches = Attention().double(), in_double(labelled(4, 5, classes=4))
    (scores,) = scored("taylor", model, [HEADS], batches)
    (norms,) = scored("magnitude", model, [HEADS])
    for head in range(2):
        rows, squares = slice(3 * head, 3 * head + 3), []
        for inputs, labels in batches:
            gate = torch.ones((), dtype=torch.float64, requires_grad=True)
            scaled = {name: p.detach().clone() for name, p in model.named_parameters()}
            for name in PARTS:
                for part in (f"{name}.weight", f"{name}.bias"):
                    scaled[part][rows] = scaled[part][rows].clone() * gate
            scaled["out.weight"][:, rows] = scaled["out.weight"][:, rows].clone() * gate
            loss = F.cross_entropy(functional_call(model, scaled, (inputs,)), labels)
            squares.append(torch.autograd.grad(loss, gate)[0].item() ** 2)
        assert scores[head].item() == pytest.approx(np.mean(squares), rel=1e-9)
        norm = sum(model.get_submodule(name).weight[rows].abs().sum() for name in PARTS)
        assert norms[head].item() == pytest.approx((norm + model.out.weight[:, rows].abs().sum()).item())


# ---- refusals


@pytest.mark.parametrize("name", ["bn_scale", "chip", "fpgm", "hrank"])
def test_criteria_of_images_refuse_attention(name):
    with pytest.raises(UserError, match=r"^layer 'query': "):
        criteria.score(name, Attention(), [HEADS], labelled(4, 5))


@pytest.mark.parametrize("name", ["chip", "hrank", "taylor"])
def test_criteria_that_run_the_network_need_batches(name, scene):
    model, units, _ = scene
    with pytest.raises(UserError, match=r"^batches: .* got none"):
        criteria.score(name, model, units)


def test_unknown_criteria_missing_norms_and_missing_weights_are_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4, affine=False))
    with pytest.raises(UserError, match=r"'luck' is not one of .*taylor"):
        criteria.score("luck", model, [])
    for producers in (("0",), ("0", "2")):
        with pytest.raises(UserError, match="layer '0': no batch-norm with a scale"):
            criteria.score("bn_scale", model, [Units("0", 4, False, producers, ())])
    with pytest.raises(UserError, match="layer '1'"):
        criteria.score("magnitude", model, [Units("1", 4, False, (), ())])


@pytest.mark.parametrize("name", ["chip", "hrank", "taylor"])
def test_a_batch_norm_of_more_channels_than_a_layer_has_is_not_its_own(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.BatchNorm1d(8 * 36), nn.Linear(8 * 36, 4))
    batches = labelled(3, 8, 8, classes=4)
    units = Graph(model, batches[0][0]).units([Prunable("0")])
    (scores,) = scored(name, model, units, batches)
    assert scores.shape == (8,)


def test_maps_of_a_layer_that_is_called_twice_are_of_both_calls_and_of_none_are_refused():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.c, self.unused = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.c(x) + self.c(-x)

    torch.manual_seed(0)
    model, images = Twice(), torch.randn(5, 3, 6, 6)
    units = [Units(name, 4, False, (name,), ()) for name in ("c", "unused")]
    (means,) = mean_over_images(model, units[:1], [(images, None)], lambda maps: maps.mean(dim=(2, 3)))
    both = torch.cat([model.c(images), model.c(-images)])
    torch.testing.assert_close(means.float(), both.relu().mean(dim=(0, 2, 3)))
    with pytest.raises(UserError, match="'unused' makes no feature maps"):
        mean_over_images(model, units, [(images, None)], lambda maps: maps.mean(dim=(2, 3)))


def test_fpgm_compares_the_filters_of_a_transposed_convolution():
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    units = Graph(model, torch.zeros(1, 3, 6, 6)).units([Prunable("0")])
    (scores,) = scored("fpgm", model, units)
    filters = model[0].weight.detach().double().transpose(0, 1).flatten(1)
    expected = (filters[:, None] - filters).norm(dim=2).sum(dim=1)
    torch.testing.assert_close(scores, expected)
