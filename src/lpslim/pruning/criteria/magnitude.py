"""The L1 norm of a unit's weights: the paper's score, and that of Li et al. 2017."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from lpslim.pruning.units import Units, weight_of


def score(model: nn.Module, units: Sequence[Units], batches: Iterable[Tensor] = ()) -> list[Tensor]:
    """Return ``s_j = sum |W_j|`` per channel, float64 (channels,) for each layer.

    W_j is the channel's filter; of a neuron its row and its column, of an attention head the rows of
    query, key and value and the columns of the output (:attr:`lpslim.pruning.units.Units.weighed`).

    Ji et al. 2025 scale it to [0, 1] inside each layer (``across=minmax``); Li et al. 2017
    (arXiv:1608.08710) compare inside a layer only (``across=uniform`` where all rates are the same).

    Raises:
        UserError: a layer has no weight.
    """
    return [
        torch.stack(
            [_norms(weight_of(model, name), axis) for name, axis in each.weighed or ((each.layer, 0),)]
        ).sum(dim=0)
        for each in units
    ]


def _norms(weight: Tensor, axis: int) -> Tensor:
    return weight.double().movedim(axis, 0).flatten(1).norm(p=1, dim=1)
