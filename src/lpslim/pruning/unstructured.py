"""Unstructured pruning: single weights set to zero, and kept there through fine-tuning.

The networks keep their shape, so that nothing runs faster without sparse kernels; multiply-adds and
parameters are counted as if zeros cost nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lpslim.pruning.cost import Cost, LayerCost
from lpslim.pruning.units import regularised_weights
from lpslim.training.runtime import Hooks


@torch.no_grad()
def smallest(
    Z: Mapping[str, Tensor], W: Mapping[str, Tensor], prices: Mapping[str, float], budget: float
) -> dict[str, Tensor]:
    """Choose the weights of smallest |Z|, over all tensors together, until ``budget`` is spent.

    Z, W: parameter name -> tensor, the same names and shapes; |W| orders the many weights whose Z is
    zero. prices: name -> what one weight of it costs. Returns per name a boolean tensor, true where
    a weight stays.
    """
    names = list(Z)
    by_w = torch.cat([W[name].abs().flatten() for name in names]).argsort(stable=True)
    order = by_w[torch.cat([Z[name].abs().flatten() for name in names])[by_w].argsort(stable=True)]
    each = torch.cat([torch.full((Z[name].numel(),), prices[name], dtype=torch.float64) for name in names])
    gone = int((each[order].cumsum(0) <= budget).sum())
    stays = torch.ones(len(order), dtype=torch.bool)
    stays[order[:gone]] = False
    parts = torch.split(stays, [Z[name].numel() for name in names])
    return {name: part.view_as(Z[name]) for name, part in zip(names, parts, strict=True)}


def positions(layers: Sequence[LayerCost], names: Sequence[str]) -> dict[str, float]:
    """Return per weight tensor the multiply-adds that one of its entries costs."""
    found = {f"{layer.name}.weight": float(layer.positions) for layer in layers}
    return {name: found[name] for name in names}


@torch.no_grad()
def apply(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set the masked weights to zero, in place."""
    for name, weight in regularised_weights(model).items():
        weight.mul_(masks[name])


def remaining(model: nn.Module, layers: Sequence[LayerCost]) -> Cost:
    """Return the cost of the weights that are not zero; other parameters count as ever."""
    weights = regularised_weights(model)
    price = positions(layers, list(weights))
    alive = {name: int(weight.count_nonzero()) for name, weight in weights.items()}
    zeros = sum(weight.numel() for weight in weights.values()) - sum(alive.values())
    params = sum(p.numel() for p in model.parameters()) - zeros
    return Cost(int(sum(price[name] * count for name, count in alive.items())), params)


class MaskKeeper(Hooks):
    """Keeps zero weights at zero while the others are trained: their gradient is dropped.

    With no gradient, no momentum and no decay of a zero, SGD leaves them exactly where they are.
    """

    def __init__(self, model: nn.Module) -> None:
        self.weights = list(regularised_weights(model).values())

    def begin(self) -> None:
        """Take the mask from the weights, on the device where they now are."""
        self.masks = [weight.detach() != 0 for weight in self.weights]

    @torch.no_grad()
    def after_backward(self) -> None:
        """Drop the gradient of every masked weight."""
        for weight, mask in zip(self.weights, self.masks, strict=True):
            assert weight.grad is not None
            weight.grad.mul_(mask)
