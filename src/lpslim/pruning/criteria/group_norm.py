"""Group norm: the size of all that produces a unit, in units of its layer's mean.

A unit is silent if the weights that it is scored by, their biases, and the scale and shift of its batch-norm
are all zero (a zero-invariant group: Chen et al. 2021, arXiv:2107.07467). Where a batch-norm follows,
the ADMM on channels ranks by the same norm over the slope of its penalty (``sparsity.channels``). Of heads
and neurons this score also counts the columns that read them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lpslim.pruning.units import Units, norm_name, parameters_of


def score(model: nn.Module, units: Sequence[Units], *_: object) -> list[Tensor]:
    """Return the squared norm, each part over its own mean; over a layer's units their mean is one."""
    own = {name: p.detach().double() for name, p in model.named_parameters(remove_duplicate=False)}
    scores = []
    for unit in units:
        layers = [*(unit.scored_by or [(unit.layer, 0)]), (norm_name(model, unit) or "", 0)]
        squares = [own[name].movedim(axis, 0)[..., None].flatten(1).square().sum(dim=1)
                   for name, axis in parameters_of(layers, own)]  # fmt: skip
        alike = [part for part in squares if len(part) == len(squares[0]) and part.any()]  # no bias of zeros
        parts = [part / part.mean() for part in alike] or squares[:1]
        scores.append(torch.stack(parts).mean(dim=0) / (unit.groups * unit.head_dim))
    return scores
