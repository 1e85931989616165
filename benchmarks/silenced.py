"""Comparison of a pruned network with its original, removed channels read as zero, without pruning code.

Which input channels a layer lost is read off its weights: those of the pruned layer are a part of the
original's, entry by entry. The original is then silenced by zeros in place of the weights of lost inputs, and
both run on new random inputs in float64, in evaluation mode.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class IncomparableError(Exception):
    """Error: two networks that cannot be compared."""


@dataclass(frozen=True)
class Comparison:
    """Largest differences, relative to the largest output: of the pruned network from the silenced original,
    and of the silenced original from the original itself, which shows that the first could be large.
    """

    difference: float
    moved: float


@torch.no_grad()
def draw_constants(model: nn.Module, seed: int = 0) -> None:
    """Draw what a fresh network has alike in all channels: scales, shifts and statistics of norms, biases."""
    generator = torch.Generator().manual_seed(seed)
    named = [*model.named_parameters(), *model.named_buffers()]
    for name, value in named:
        if value.is_floating_point() and value.numel() > 1 and bool((value == value.flatten()[0]).all()):
            if name.endswith("running_var"):
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
            else:
                value.add_(0.2 * torch.randn(value.shape, generator=generator))


def compare(dense: nn.Module, pruned: nn.Module, shape: Sequence[int], seed: int = 1) -> Comparison:
    """Compare a pruned network with the silenced original on two random inputs of a shape (C, H, W).

    Raises:
        IncomparableError: a layer's weights are no part of the original's, so that nothing tells which inputs
            it lost, or outputs have another shape or are no numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    before, after, silent = (_run(model, inputs) for model in (dense, pruned, silenced(dense, pruned)))
    return Comparison(_difference(after, silent), _difference(silent, before))


@torch.no_grad()
def silenced(dense: nn.Module, pruned: nn.Module) -> nn.Module:
    """Return a copy of the original in which every layer reads zeros where it has lost inputs."""
    copied, smaller = copy.deepcopy(dense), dict(pruned.named_modules())
    for name, module in copied.named_modules():
        own, part = _weight(module), _weight(smaller[name])
        if own is None or part is None or own.shape[1] == 1:  # a depthwise filter goes with its channel
            continue
        groups = (getattr(module, "groups", 1), getattr(smaller[name], "groups", 1))
        if own.shape[1] * groups[0] == part.shape[1] * groups[1]:
            continue
        kept = torch.zeros(groups[0], own.shape[1], dtype=torch.bool)
        for block in part.chunk(groups[1]):
            rows, columns = _located(
                name, own.reshape(*own.shape[:2], -1), block.reshape(*block.shape[:2], -1)
            )
            kept[rows[0] // (len(own) // groups[0]), columns] = True
        for block, columns in zip(own.chunk(groups[0]), kept, strict=True):
            block[:, ~columns] = 0
    return copied


def narrower(dense: nn.Module, pruned: nn.Module) -> tuple[int, int]:
    """Return how many convolutions and linear layers have lost outputs, and how many there are."""
    smaller = dict(pruned.named_modules())
    pairs = [(_weight(module), _weight(smaller[name])) for name, module in dense.named_modules()]
    lost = [len(own) > len(part) for own, part in pairs if own is not None and part is not None]
    return sum(lost), len(lost)


def _weight(module: nn.Module) -> Tensor | None:
    """Return a layer's matrix or filters (outputs, inputs of a group, ...), if it has any."""
    if isinstance(module, nn.MultiheadAttention):
        return module.in_proj_weight
    return module.weight if isinstance(module, (*CONVOLUTIONS, nn.Linear)) else None


def _located(name: str, whole: Tensor, part: Tensor) -> tuple[list[int], list[int]]:
    """Return the rows and columns of ``whole`` (O, I, K) whose entries are ``part`` (o, i, K)."""
    starts = (whole == part[0, 0]).all(-1).nonzero().tolist()
    for row, column in starts:
        seconds = (whole[:, column] == part[min(1, len(part) - 1), 0]).all(-1).nonzero().flatten().tolist()
        for second in seconds:
            columns = _found(whole[[row, second]], part[[0, min(1, len(part) - 1)]])
            if columns:
                picked = columns[: min(2, len(columns))]
                rows = _found(whole[:, picked].transpose(0, 1), part[:, : len(picked)].transpose(0, 1))
                if rows and torch.equal(whole[rows][:, columns], part):
                    return rows, columns
    raise IncomparableError(f"{name}: its weights are no part of the original's")


def _found(whole: Tensor, part: Tensor) -> list[int]:
    """Return where each column of ``part`` (2, n, K) is among those of ``whole`` (2, N, K); empty if not."""
    places = {tuple(key): place for place, key in enumerate(whole.transpose(0, 1).flatten(1).tolist())}
    found = [places.get(tuple(key), -1) for key in part.transpose(0, 1).flatten(1).tolist()]
    return [] if -1 in found else found


@torch.no_grad()
def _run(model: nn.Module, inputs: Tensor) -> Tensor:
    return copy.deepcopy(model).double().eval()(inputs)


def _difference(output: Tensor, expected: Tensor) -> float:
    if output.shape != expected.shape:
        raise IncomparableError(f"outputs are {tuple(output.shape)}, not {tuple(expected.shape)}")
    difference = ((output - expected).abs().max() / expected.abs().max()).item()
    if not math.isfinite(difference):
        raise IncomparableError("outputs are no numbers")
    return difference
