"""First-order Taylor: the squared change of the loss when a unit's gate closes (Molchanov et al. 2019).

"Importance Estimation for Neural Network Pruning", doi:10.1109/CVPR.2019.01152. A gate g_j = 1 multiplies all
channels of a unit behind their batch-norm, in evaluation mode: dL/dg_j is the sum over these channels of
gamma dL/dgamma + beta dL/dbeta. Without batch-norm it multiplies the weights that the unit is scored by, and
their biases: dL/dg_j = sum of w dL/dw.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from lpslim.base.errors import UserError
from lpslim.base.modules import eval_mode, weight_of
from lpslim.pruning.criteria import Batches, Loss
from lpslim.pruning.units import Units, norm_name, pooled


def score(
    model: nn.Module, units: Sequence[Units], batches: Batches = (), loss: Loss = F.cross_entropy
) -> list[Tensor]:
    """Return ``s_j = mean over batches of (dL/dg_j)^2``, that of a unit of several channels spread over them.

    Raises:
        UserError: there are no batches, or a layer has no weight.
    """
    gates = [_gated(model, unit) for unit in units]
    own = dict(model.named_parameters(remove_duplicate=False))
    leaves = {
        name: own[name].detach().requires_grad_() for gate in gates for name, _ in gate
    }  # frozen or not
    totals = [torch.zeros(unit.size, dtype=torch.float64) for unit in units]
    done = 0
    with eval_mode(model), torch.enable_grad():
        for inputs, labels in batches:
            value = loss(functional_call(model, leaves, (inputs,)), labels)
            gradients = torch.autograd.grad(value, list(leaves.values()))
            products = {n: leaves[n].detach().double() * g for n, g in zip(leaves, gradients, strict=True)}
            for unit, gate, total in zip(units, gates, totals, strict=True):
                slopes = [products[name].movedim(axis, 0).flatten(1).sum(dim=1) for name, axis in gate]
                total += pooled([unit], [torch.stack(slopes).sum(dim=0)])[0].square().cpu()
            done += 1
    if not done:
        raise UserError("batches: this criterion needs inputs with labels, got none")
    return [_spread(unit, total / done) for unit, total in zip(units, totals, strict=True)]


def _gated(model: nn.Module, unit: Units) -> list[tuple[str, int]]:
    """Return the parameters that a unit's gate multiplies, as (name, axis of the unit's channels)."""
    norm = norm_name(model, unit)
    if norm and model.get_submodule(norm).affine:
        return [(f"{norm}.weight", 0), (f"{norm}.bias", 0)]
    gated = []
    for layer, axis in unit.scored_weights:
        weight_of(model, layer)  # refuses a layer without
        gated.append((f"{layer}.weight", axis))
        if axis == 0 and getattr(model.get_submodule(layer), "bias", None) is not None:
            gated.append((f"{layer}.bias", 0))
    return gated


def _spread(unit: Units, scores: Tensor) -> Tensor:
    channels = scores[None, :, None].expand(unit.groups, unit.size, unit.head_dim)
    return channels.flatten() / (unit.groups * unit.head_dim)
