"""Random scores: the control without which no criterion can be said to be good."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lpslim.pruning.units import Units


def score(_model: nn.Module, units: Sequence[Units], *_: object) -> list[Tensor]:
    """Return uniform draws from torch's global generator, one per channel."""
    return [torch.rand(unit.groups * unit.size * unit.head_dim, dtype=torch.float64) for unit in units]
