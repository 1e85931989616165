"""Unstructured pruning: single weights set to zero.

The networks keep their shape, so that nothing runs faster without sparse kernels; multiply-adds and
parameters are counted as if zeros cost nothing.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lpslim.base.errors import UserError
from lpslim.pruning.budget import Budget, removed_share
from lpslim.pruning.cost import Cost, LayerCost, layer_costs, parameters
from lpslim.pruning.units import regularised_weights

ROUNDING = 1e-12  # relative: 0.29 * 100 is 28.999999999999996


def prune(
    model: nn.Module, scored: Mapping[str, Tensor], example: Tensor, budget: Budget
) -> tuple[Cost, Cost]:
    """Set the weights that are smallest in ``scored`` (Z or W) to zero; return the cost before and after.

    scored: parameter name -> tensor, of all weights of convolutions and linear layers.
    """
    layers, own = layer_costs(model, example), regularised_weights(model)
    dense, prices = remaining(model, layers), dict.fromkeys(scored, 1.0)
    amount = budget.ratio * sum(weight.numel() for weight in scored.values())
    if budget.target_flops is not None:
        prices, amount = positions(layers), budget.target_flops * dense.macs
    elif budget.target_params is not None:
        amount = removed_share(budget.target_params, dense.params) * dense.params
    masks = smallest(scored, own, prices, amount)
    for name, weight in own.items():
        weight.detach().mul_(masks[name])
    return dense, remaining(model, layers)


@torch.no_grad()
def smallest(
    Z: Mapping[str, Tensor], W: Mapping[str, Tensor], prices: Mapping[str, float], amount: float
) -> dict[str, Tensor]:
    """Return masks, true where a weight stays: those of smallest |Z| go until their prices reach ``amount``.

    Z, W: parameter name -> tensor, ranked all together; |W| orders the many weights whose Z is zero. prices:
    name -> the cost of one weight of this tensor.
    """
    z, w = (torch.cat([part[name].abs().flatten() for name in Z]) for part in (Z, W))
    price = torch.cat([torch.full((t.numel(),), prices[name], dtype=torch.float64) for name, t in Z.items()])
    order = w.argsort(stable=True)
    order = order[z[order].argsort(stable=True)]
    stays = torch.ones(len(order), dtype=torch.bool)
    stays[order[price[order].cumsum(0) <= amount * (1 + ROUNDING)]] = False
    masks = torch.split(stays, [t.numel() for t in Z.values()])
    return {name: mask.view_as(Z[name]) for name, mask in zip(Z, masks, strict=True)}


def positions(layers: Sequence[LayerCost]) -> dict[str, float]:
    """Return, by the name of its weight, the multiply-adds that one entry of a layer costs."""
    return {f"{layer.name}.weight": float(layer.positions) for layer in layers}


def remaining(model: nn.Module, layers: Sequence[LayerCost]) -> Cost:
    """Return the cost of the weights that are not zero; other parameters count as ever."""
    weights, prices = regularised_weights(model), positions(layers)
    alive = {name: int(weight.count_nonzero()) for name, weight in weights.items()}
    macs = sum(prices[name] * count for name, count in alive.items())
    zeros = sum(weight.numel() - alive[name] for name, weight in weights.items())
    return Cost(int(macs), parameters(model) - zeros)


def check(model: nn.Module, budget: Budget) -> None:
    """Refuse a target (UserError) beyond the weights of convolutions and linear layers."""
    if (target := budget.target_params) is None:
        return
    dense = parameters(model)
    most = sum(weight.numel() for weight in regularised_weights(model).values()) / dense
    if removed_share(target, dense) >= most:
        limit = f"below {most:.4f}, the share of"
        if target >= 1:
            limit = f"above {dense - round(most * dense)}, what is left without"
        weights = "the weights of convolutions and linear layers"
        raise UserError(f"target_params={target:g}: must be {limit} {weights}")
