"""FPGM: the distance of a filter to all others of its layer (He et al. 2019, arXiv:1811.00250)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lpslim.base.errors import UserError
from lpslim.base.modules import weight_of
from lpslim.pruning.units import Units


def check(model: nn.Module, units: Sequence[Units]) -> None:
    """Refuse units that are more than the filters of one layer, such as attention heads (UserError)."""
    for unit in units:
        if unit.scored_by:
            raise UserError(f"layer {unit.layer!r}: its units have no single filter, which FPGM compares")


def score(model: nn.Module, units: Sequence[Units], *_: object) -> list[Tensor]:
    """Return ``s_i = sum_j ||W_i - W_j||_2`` per channel.

    The lowest lie nearest the layer's geometric median, so the others can stand in for them. The paper
    removes one share of every layer (``score_norm=uniform``), again after every epoch of a soft pruning; here
    the score is taken once, like every other.
    """
    return [_distances(weight_of(model, unit.layer).double().flatten(1)) for unit in units]


def _distances(filters: Tensor) -> Tensor:
    # the faster way through x^2 + y^2 - 2xy gives equal filters a distance of 1e-8
    return torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist").sum(dim=1)
