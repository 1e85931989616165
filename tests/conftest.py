"""Networks whose every tensor matters, and random choices of what to keep in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import hypothesis
import pytest
import torch
from torch import nn

from lpslim.models import family as families
from lpslim.pruning.units import Units

# the same examples on every machine, and none fails because the machine is busy
PATIENT = [hypothesis.HealthCheck.too_slow]
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, suppress_health_check=PATIENT)
hypothesis.settings.load_profile("fixed")

Shape = tuple[int, int, int]


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also the tests that take minutes")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        quick = [item for item in items if "slow" not in item.keywords]
        config.hook.pytest_deselected(items=[item for item in items if "slow" in item.keywords])
        items[:] = quick


@pytest.fixture
def network() -> Callable[..., nn.Module]:
    """Build a network of the package in evaluation mode, seeded, its batch-norm far from the identity."""

    def build(family: str, name: str, shape: Shape, *, classes: int = 10, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        model = families.get(family).build(name, num_classes=classes, in_channels=shape[0])
        return unsettle(model).eval()

    return build


def unsettle(model: nn.Module) -> nn.Module:
    """Draw statistics, scales of both signs and shifts for every batch-norm, and every bias."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.bias, mean=0.5, std=0.5)  # few channels all dead
            with torch.no_grad():
                module.weight.uniform_(0.3, 1.2).mul_(torch.rand_like(module.weight).gt(0.3) * 2 - 1)
        elif isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.3)
    return model


@pytest.fixture
def random_kept() -> Callable[..., dict[str, list[int]]]:
    """Draw sorted units to keep in each layer; the first keeps one, the last loses one, the rest anything."""

    def draw(units: Sequence[Units], seed: int) -> dict[str, list[int]]:
        generator = torch.Generator().manual_seed(seed)
        sizes = [int(torch.randint(1, each.size + 1, (), generator=generator)) for each in units]
        sizes[0] = 1
        sizes[-1] = units[-1].size - 1
        return {
            each.layer: torch.randperm(each.size, generator=generator)[:size].sort().values.tolist()
            for each, size in zip(units, sizes, strict=True)
        }

    return draw
