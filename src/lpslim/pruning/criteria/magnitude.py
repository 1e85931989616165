"""The L1 norm of a unit's weights: the paper's criterion, and that of Li et al. 2017 (arXiv:1608.08710).

Ji et al. 2025 scale it to [0, 1] inside each layer (``score_norm=minmax``); Li et al. compare inside a layer
only. The weights are a channel's filter; of a neuron its row and its column, of an attention head the rows of
query, key and value and the columns of the output (``Units.scored_by``).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lpslim.base.modules import weight_of
from lpslim.pruning.units import Units


def score(model: nn.Module, units: Sequence[Units], *_: object) -> list[Tensor]:
    """Return ``s_j = sum |W_j|`` per channel; UserError if a layer has no weight."""
    parts = [unit.scored_by or ((unit.layer, 0),) for unit in units]
    norms = [[_norms(weight_of(model, layer), axis) for layer, axis in part] for part in parts]
    return [torch.stack(part).sum(dim=0) for part in norms]


def _norms(weight: Tensor, axis: int) -> Tensor:
    return weight.double().movedim(axis, 0).flatten(1).norm(p=1, dim=1)
