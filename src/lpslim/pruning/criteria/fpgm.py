"""FPGM: the distance of a filter to all others of its layer (He et al. 2019, arXiv:1811.00250).

The lowest lie nearest the layer's geometric median, so the others can stand in for them. The paper removes
one share of every layer (``score_norm=uniform``), again after every epoch; here the score is taken once.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lpslim.base.errors import UserError
from lpslim.base.modules import weight_of
from lpslim.pruning.units import Units


def check(model: nn.Module, units: Sequence[Units]) -> None:
    """Refuse units that are more than filters of one layer, such as attention heads (UserError)."""
    several = (u.layer for u in units if any(name != u.layer for name, _ in u.scored_by))
    if odd := next(several, None):
        raise UserError(f"layer {odd!r}: its units are more than filters of one layer, which FPGM compares")


def score(model: nn.Module, units: Sequence[Units], *_: object) -> list[Tensor]:
    """Return ``s_i = sum_j ||W_i - W_j||_2`` per channel."""
    axes = [unit.scored_by[0][1] if unit.scored_by else 0 for unit in units]
    weights = [weight_of(model, unit.layer).double() for unit in units]
    filters = [weight.movedim(axis, 0).flatten(1) for weight, axis in zip(weights, axes, strict=True)]
    # the faster way through x^2 + y^2 - 2xy gives equal filters a distance of 1e-8
    return [torch.cdist(f, f, compute_mode="donot_use_mm_for_euclid_dist").sum(dim=1) for f in filters]
