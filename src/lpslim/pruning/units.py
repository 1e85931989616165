"""Prunable units: the output channels of a layer, and every layer that they touch."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from lpslim.base.errors import UserError


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

    A unit is one channel, or one of each of ``groups`` groups where a grouped convolution is touched, or
    ``span`` channels side by side: an attention head. ``producers`` lose an output channel with each
    unit (the layer itself, its batch-norm, ...), ``consumers`` lose input channels. ``weighed``: the
    weights that a unit is scored by, as (layer, axis of its channels); none given: the layer's own.
    """

    layer: str
    size: int
    sensitive: bool
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    groups: int = 1
    span: int = 1
    weighed: tuple[tuple[str, int], ...] = ()

    def check(self, chosen: Sequence[int]) -> None:
        """Refuse a choice of units that cannot be what is kept.

        Raises:
            UserError: not sorted, not distinct, none, or beyond the last.
        """
        if not chosen or list(chosen) != sorted(set(chosen)) or not 0 <= chosen[0] <= chosen[-1] < self.size:
            raise UserError(
                f"layer {self.layer!r}: kept units must be sorted, distinct, in 0..{self.size - 1}, not none"
            )

    def __str__(self) -> str:
        mark = ", sensitive" if self.sensitive else ""
        return f"{self.layer}: {self.size} units{mark} -> {', '.join(self.consumers)}"


def is_protected(layer: str, protected: Sequence[str]) -> bool:
    """Return whether a layer is named, by itself, by a module that it is in, or by a glob: ``layer3.*``."""
    return any(
        layer == name or layer.startswith(f"{name}.") or fnmatch.fnmatchcase(layer, name)
        for name in protected
    )


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


def pooled(units: Sequence[Units], scores: Sequence[Tensor]) -> list[Tensor]:
    """Return scores per unit (size,) from scores per channel (groups * size * span,): sums over channels."""
    return [
        s.view(each.groups, each.size, each.span).sum(dim=(0, 2))
        for each, s in zip(units, scores, strict=True)
    ]


def norm_of(model: nn.Module, units: Units) -> nn.BatchNorm2d:
    """Return the first batch-norm that the layer's channels pass through.

    Raises:
        UserError: there is none with a scale of its own.
    """
    found = (model.get_submodule(name) for name in units.producers)
    norm = next((module for module in found if isinstance(module, nn.BatchNorm2d)), None)
    if norm is None or not norm.affine:
        raise UserError(f"layer {units.layer!r}: no batch-norm with a scale follows it")
    return norm
