"""FPGM: the distance of a filter to all others of its layer (He et al. 2019, arXiv:1811.00250)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from lpslim.pruning.units import Units, weight_of


def score(model: nn.Module, units: Sequence[Units], batches: Iterable[Tensor] = ()) -> list[Tensor]:
    """Return ``s_i = sum_j ||W_i - W_j||_2`` per channel, float64 (channels,) for each layer.

    The lowest lie nearest the layer's geometric median, so the others can stand in for them. The
    paper removes one share of every layer (``across=uniform``), again after every epoch of a soft
    pruning; here the score is taken once, like every other.

    Raises:
        UserError: a layer has no weight.
    """
    return [_distances(weight_of(model, each.layer).double().flatten(1)) for each in units]


def _distances(filters: Tensor) -> Tensor:
    # the faster way through x^2 + y^2 - 2xy gives equal filters a distance of 1e-8
    return torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist").sum(dim=1)
