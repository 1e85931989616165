"""The L1 norm of a channel's weights: the paper's score, and that of Li et al. 2017."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from lpslim.units import Units, weight_of


def score(model: nn.Module, units: Sequence[Units], batches: Iterable[Tensor] = ()) -> list[Tensor]:
    """Return ``s_j = sum |W_j|`` per channel, float64 (channels,) for each layer.

    Ji et al. 2025 scale it to [0, 1] inside each layer (``across=minmax``); Li et al. 2017
    (arXiv:1608.08710) compare inside a layer only (``across=uniform`` where all rates are the same).

    Raises:
        UserError: a layer has no weight.
    """
    return [weight_of(model, each.layer).double().flatten(1).norm(p=1, dim=1) for each in units]
