"""First-order Taylor: the squared change of the loss when a unit's gate closes (Molchanov et al. 2019).

"Importance Estimation for Neural Network Pruning", doi:10.1109/CVPR.2019.01152. A gate g_j = 1 multiplies all
channels of a unit behind their batch-norm, in evaluation mode: dL/dg_j is the sum over these channels of
gamma dL/dgamma + beta dL/dbeta. Without batch-norm it multiplies the weights that the unit is scored by, and
their biases: dL/dg_j is the sum of w dL/dw.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from lpslim.base.errors import UserError
from lpslim.base.modules import attributes_kept, eval_mode
from lpslim.pruning.criteria import Batches, Loss
from lpslim.pruning.units import Units, norm_name, parameters_of, pooled


def score(
    model: nn.Module, units: Sequence[Units], batches: Batches = (), loss: Loss = F.cross_entropy
) -> list[Tensor]:
    """Return ``s_j = mean over batches of (dL/dg_j)^2``, spread evenly over a unit's channels."""
    own = dict(model.named_parameters(remove_duplicate=False))
    gates = [_gate(norm_name(model, unit), unit, own) for unit in units]
    names = [name for gate in gates for name, _ in gate]
    leaves = {name: own[name].detach().requires_grad_() for name in names}  # frozen or not
    totals = [torch.zeros(unit.size, dtype=torch.float64) for unit in units]
    done = 0
    with attributes_kept(model), eval_mode(model), torch.enable_grad():
        for inputs, labels in batches:
            positional, named = ((), dict(inputs)) if isinstance(inputs, Mapping) else (inputs, {})
            value = loss(functional_call(model, leaves, positional, named), labels)
            gradients = torch.autograd.grad(value, list(leaves.values()))
            products = {n: leaves[n].detach().double() * g for n, g in zip(leaves, gradients, strict=True)}
            for unit, gate, total in zip(units, gates, totals, strict=True):
                slopes = [products[n].movedim(axis, 0)[..., None].flatten(1).sum(dim=1) for n, axis in gate]
                total += pooled([unit], [torch.stack(slopes).sum(dim=0)])[0].square().cpu()
            done += 1
    if not done:
        raise UserError("batches: this criterion needs inputs with labels, got none")
    scores = []
    for unit, total in zip(units, totals, strict=True):
        each = total / done / (unit.groups * unit.head_dim)
        scores.append(each.repeat_interleave(unit.head_dim).repeat(unit.groups))
    return scores


def _gate(norm: str | None, unit: Units, own: Mapping[str, nn.Parameter]) -> list[tuple[str, int]]:
    """Return the parameters that a unit's gate multiplies, as (name, axis of the unit's channels)."""
    layers = ((norm, 0),) if norm and f"{norm}.weight" in own else unit.scored_by or ((unit.layer, 0),)
    return parameters_of(layers, own)
