"""Means over feature maps, and what looking at a network leaves behind: nothing."""

import pytest
import torch
from torch import nn

from lpslim.base.errors import UserError
from lpslim.pruning.feature_maps import check, mean_over_images
from lpslim.pruning.units import Units

IMAGES = torch.randn(5, 3, 6, 6, generator=torch.Generator().manual_seed(1))
LABELS = torch.zeros(5)
UNITS = [Units("0", 4, False, ("0", "1"), ("3",)), Units("3", 2, False, ("3",), ("4",))]


@pytest.fixture
def model():
    """A convolution with batch-norm, another without."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 2, 1), nn.Conv2d(2, 1, 1)
    )


def means(maps):
    return maps.mean(dim=(2, 3))


def test_maps_are_after_batch_norm_and_relu_and_averaged_whatever_the_batches(model):
    parts = mean_over_images(model, UNITS, zip(IMAGES.split(2), LABELS.split(2), strict=True), means)
    model.eval()
    maps = model[:2](IMAGES), model[:4](IMAGES)  # the network's own activation is passed over
    for measured, expected in zip(parts, maps, strict=True):
        assert measured.dtype == torch.float64
        torch.testing.assert_close(
            measured.float(), expected.relu().mean(dim=(0, 2, 3)), rtol=1e-5, atol=1e-6
        )


def test_looking_leaves_no_trace_even_when_the_network_fails(model):
    model[3].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    mean_over_images(model, UNITS, [(IMAGES, LABELS)], means)
    with pytest.raises(RuntimeError, match="channels"):
        mean_over_images(model, UNITS, [(IMAGES[:, :2], LABELS)], means)
    assert [module.training for module in model] == [True, True, True, False, True]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_no_images_and_no_maps_are_refused(model):
    with pytest.raises(UserError, match="needs images, got none"):
        mean_over_images(model, UNITS, [], means)
    with pytest.raises(UserError, match="layer '0': makes no feature maps"):
        check(nn.Sequential(nn.Linear(4, 3)), [Units("0", 3, False, ("0",), ())])
