"""Every criterion against its formula, written out slowly; and the maps that two of them look at."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lpslim.base import registry
from lpslim.base.errors import UserError
from lpslim.pruning.criteria import bn_scale, chip, fpgm, hrank, magnitude, random
from lpslim.pruning.feature_maps import mean_over_images
from lpslim.pruning.graph import find_units
from lpslim.pruning.units import Prunable, Units


@pytest.fixture
def scene(network):
    model = network("vgg", "vgg_small", (3, 16, 16))
    units = find_units(model, torch.zeros(1, 3, 16, 16), lookup.find("models", "vgg").prunable(model))
    images = [torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(n)) for n in (3, 2)]
    return model, units, images


def maps_of(model, layer, images):
    """The layer's maps after batch-norm and ReLU, through the modules one by one: VGG is a sequence."""
    last = int(layer.split(".")[1]) + 2  # convolution, batch-norm, ReLU
    with torch.no_grad():
        return torch.cat([model.features[: last + 1](batch) for batch in images])


@pytest.mark.parametrize("name", lookup.choices("criteria"))
def test_every_criterion_scores_every_channel_of_every_layer(name, scene):
    model, units, images = scene
    before = {key: value.clone() for key, value in model.state_dict().items()}
    scores = lookup.find("criteria", name).score(model, units, iter(images))
    assert [s.shape for s in scores] == [(each.size,) for each in units]
    assert all(s.dtype == torch.float64 and s.isfinite().all() and not s.requires_grad for s in scores)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_magnitude_is_the_sum_of_absolute_weights(scene):
    model, units, _ = scene
    for scores, each in zip(magnitude.score(model, units), units, strict=True):
        weight = model.get_submodule(each.layer).weight
        slow = [sum(abs(w) for w in filter_.flatten().tolist()) for filter_ in weight]
        assert scores.tolist() == pytest.approx(slow, rel=1e-12)


def test_fpgm_is_the_sum_of_distances(scene):
    model, units, _ = scene
    for scores, each in zip(fpgm.score(model, units), units, strict=True):
        filters = model.get_submodule(each.layer).weight.detach().double().flatten(1).numpy()
        slow = [sum(np.sqrt(((a - b) ** 2).sum()) for b in filters) for a in filters]
        assert scores.tolist() == pytest.approx(slow, rel=1e-10)


def test_fpgm_gives_twins_the_same_score_and_no_distance():
    conv = nn.Conv2d(1, 3, 1)
    conv.weight.data = torch.tensor([[[[0.3]]], [[[0.3]]], [[[0.7]]]])
    (scores,) = fpgm.score(nn.Sequential(conv), [Units("0", 3, False, (), ())])
    assert scores.tolist() == pytest.approx([0.4, 0.4, 0.8])
    assert scores[0] == scores[1]


def test_bn_scale_reads_the_batch_norm_that_follows(scene):
    model, units, _ = scene
    for scores, each in zip(bn_scale.score(model, units), units, strict=True):
        index = int(each.layer.split(".")[1])
        assert scores.tolist() == model.features[index + 1].weight.abs().tolist()


def test_bn_scale_needs_a_batch_norm():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    units = find_units(model, torch.zeros(1, 3, 4, 4), [Prunable("0")])
    with pytest.raises(UserError, match="layer '0': no batch-norm with a scale follows it"):
        bn_scale.score(model, units)


def test_random_follows_the_global_generator(scene):
    model, units, _ = scene
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(torch.cat(random.score(model, units)))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert 0 <= draws[0].min() < draws[0].max() < 1


def test_hrank_is_the_mean_rank_of_the_maps(scene):
    model, units, images = scene
    for scores, each in zip(hrank.score(model, units, images), units, strict=True):
        maps = maps_of(model, each.layer, images).numpy()
        slow = [np.mean([np.linalg.matrix_rank(one) for one in maps[:, j]]) for j in range(each.size)]
        assert scores.tolist() == pytest.approx(slow, abs=1e-12)


def nuclear_drops(rows):
    """CHIP as it is defined: one row removed, singular values anew."""
    whole = np.linalg.svd(rows, compute_uv=False).sum()
    return [
        whole - np.linalg.svd(np.delete(rows, i, axis=0), compute_uv=False).sum() for i in range(len(rows))
    ]


def test_chip_is_the_mean_drop_of_the_nuclear_norm(scene):
    model, units, images = scene
    for scores, each in zip(chip.score(model, units, images), units, strict=True):
        maps = maps_of(model, each.layer, images).double().flatten(2).numpy()
        slow = np.mean([nuclear_drops(one) for one in maps], axis=0)
        scale = np.linalg.norm(maps, axis=(1, 2)).mean()
        assert scores.numpy() == pytest.approx(slow, abs=2e-8 * scale)


@given(
    rows=st.integers(1, 9),
    height=st.integers(1, 4),
    rank=st.integers(1, 9),
    scale=st.sampled_from([1e-3, 1.0, 1e4]),
    seed=st.integers(0, 10_000),
)
def test_one_eigendecomposition_gives_all_the_drops(rows, height, rank, scale, seed):
    draw = np.random.default_rng(seed)
    matrix = draw.normal(size=(rows, rank)) @ draw.normal(size=(rank, height * height)) * scale
    matrix[draw.random(rows) < 0.2] = 0  # dead channels
    found = chip.independence(torch.from_numpy(matrix).view(1, rows, height, height))[0]
    size = float(np.linalg.norm(matrix))
    expected = nuclear_drops(matrix) if rows > 1 else [np.linalg.svd(matrix, compute_uv=False).sum()]
    assert found.numpy() == pytest.approx(np.array(expected), abs=5e-8 * size + 1e-300)


def test_orthogonal_channels_are_worth_their_norm_and_dead_ones_nothing():
    maps = torch.zeros(1, 5, 2, 2, dtype=torch.float64)
    for i, norm in enumerate((3.0, 2.0, 0.5)):
        maps.view(1, 5, 4)[0, i, i] = norm
    assert chip.independence(maps)[0].tolist() == pytest.approx([3.0, 2.0, 0.5, 0, 0], abs=1e-7)
    assert chip.independence(torch.zeros(2, 3, 2, 2)).tolist() == [[0.0] * 3] * 2


def test_chip_in_chunks_is_chip(monkeypatch):
    maps = torch.rand(7, 6, 4, 4)
    whole = chip.independence(maps)
    monkeypatch.setattr(chip, "CHUNK", 1)
    assert torch.allclose(chip.independence(maps), whole, rtol=1e-13, atol=0)


def test_maps_are_averaged_over_images_whatever_the_batches(scene):
    model, units, images = scene
    parts = mean_over_images(model, units, images, lambda maps: maps.mean(dim=(2, 3)))
    whole = mean_over_images(model, units, [torch.cat(images)], lambda maps: maps.mean(dim=(2, 3)))
    for one, other, each in zip(parts, whole, units, strict=True):
        assert torch.allclose(one, other, rtol=1e-5)
        assert torch.allclose(one.float(), maps_of(model, each.layer, images).mean(dim=(0, 2, 3)), rtol=1e-4)


def test_looking_leaves_no_trace(scene):
    model, units, images = scene
    model.train()
    model.features[1].eval()
    mean_over_images(model, units, images, lambda maps: maps.mean(dim=(2, 3)))
    assert model.training
    assert not model.features[1].training
    assert model.features[4].training
    assert not any(module._forward_hooks for module in model.modules())


def test_the_layer_itself_is_read_where_no_batch_norm_follows():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1))
    units = find_units(model, torch.zeros(1, 1, 2, 2), [Prunable("0")])
    (found,) = mean_over_images(model, units, [torch.ones(1, 1, 2, 2)], lambda maps: maps.amax(dim=(2, 3)))
    expected = model[0](torch.ones(1, 1, 1, 1)).relu().flatten()
    assert torch.allclose(found.float(), expected)


def test_no_images_and_no_maps_are_refused(scene):
    model, units, _ = scene
    with pytest.raises(UserError, match="needs images, got none"):
        hrank.score(model, units, [])
    dense = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    with pytest.raises(UserError, match=r"layer '0': its output \(1, 3\) is no feature map"):
        chip.score(dense, [Units("0", 3, False, ("0",), ("2",))], [torch.zeros(1, 4)])


def test_the_rule_is_as_exact_as_it_says():
    assert math.exp(-(math.pi**2) / chip.STEP) < 3e-11
