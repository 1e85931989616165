"""The paper's score: the L1 norm of a channel's weights, min-max normalised in its layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lpslim.units import Units, weight_of


def score(model: nn.Module, units: Sequence[Units]) -> list[Tensor]:
    """Return one score in [0, 1] per unit, a float64 tensor (units,) for each layer.

    Every layer has a unit of score 0 and one of score 1 (Ji et al. 2025; Li et
    al. 2017, arXiv:1608.08710, for the norm). In a layer whose units all weigh the same,
    none stands out, and all score 0.
    """
    return [normalise(weight_of(model, each.layer).double().flatten(1).norm(p=1, dim=1)) for each in units]


def normalise(values: Tensor) -> Tensor:
    """Return values (n,) mapped to [0, 1] by their own minimum and maximum."""
    low, high = values.aminmax()
    return torch.zeros_like(values) if low == high else (values - low) / (high - low)
