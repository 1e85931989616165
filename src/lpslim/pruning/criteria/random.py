"""Random scores: the control without which no criterion can be said to be good."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from lpslim.pruning.units import Units, weight_of


def score(model: nn.Module, units: Sequence[Units], batches: Iterable[Tensor] = ()) -> list[Tensor]:
    """Return uniform draws of torch's global generator, float64 (channels,) for each layer.

    Raises:
        UserError: a layer has no weight.
    """
    return [torch.rand(len(weight_of(model, each.layer)), dtype=torch.float64) for each in units]
