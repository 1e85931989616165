"""Prunable units: the output channels of a layer, and every layer that they touch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from lpslim.errors import UserError


@dataclass(frozen=True)
class Prunable:
    """A layer whose units may be removed, by its name in the network.

    ``sensitive`` layers keep the fraction ``adjust`` of their units, the others the
    model's general floor.
    """

    layer: str
    sensitive: bool = False


@dataclass(frozen=True)
class Units:
    """The units of one layer: removing one shrinks the outputs and inputs listed here.

    ``producers`` lose an output channel with each unit (the layer itself, its
    batch-norm, ...), ``consumers`` lose input channels.
    """

    layer: str
    size: int
    sensitive: bool
    producers: tuple[str, ...]
    consumers: tuple[str, ...]

    def __str__(self) -> str:
        mark = ", sensitive" if self.sensitive else ""
        return f"{self.layer}: {self.size} units{mark} -> {', '.join(self.consumers)}"


def regularised_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights on which the penalty acts, by name: convolutions and linear layers.

    Biases and batch-norm are left alone (the released code mixed them up).
    """
    return {
        f"{name}.weight": module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }


def weight_of(model: nn.Module, layer: str) -> Tensor:
    """Return the weight of a layer, detached, units along the first axis.

    Raises:
        UserError: the network has no such layer, or it has no weight.
    """
    found = dict(model.named_modules()).get(layer)
    if found is None or not isinstance(weight := getattr(found, "weight", None), Tensor):
        raise UserError(f"layer {layer!r}: the network has none of this name with a weight")
    return weight.detach()
