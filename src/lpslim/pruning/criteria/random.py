"""Random scores: the control without which no criterion can be said to be good."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lpslim.base.modules import weight_of
from lpslim.pruning.units import Units


def score(model: nn.Module, units: Sequence[Units], *_: object) -> list[Tensor]:
    """Return uniform draws from torch's global generator, one per channel."""
    return [torch.rand(len(weight_of(model, unit.layer)), dtype=torch.float64) for unit in units]
