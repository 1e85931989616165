"""From scores to the units that stay: one global order, floors per layer, a ratio or a target.

Pure functions. All units of all layers are ranked together; the lowest go first, except
where a layer has reached its floor (Ji et al. 2025).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lpslim.base.errors import UserError
from lpslim.pruning.units import Units

TOLERANCE = 0.003  # of the dense cost: 0.3 points


def minmax(values: Tensor) -> Tensor:
    """Return values (n,) mapped to [0, 1] by their own minimum and maximum; equal ones to 0."""
    low, high = values.aminmax()
    return torch.zeros_like(values) if low == high else (values - low) / (high - low)


def uniform(values: Tensor) -> Tensor:
    """Return the share of the values (n,) that lie below each: the same share of every layer then goes."""
    return values.argsort(stable=True).argsort().double() / len(values)


def raw(values: Tensor) -> Tensor:
    """Return values (n,) as they are: one threshold for all layers."""
    return values


# How scores of different layers are put on one scale
ACROSS: dict[str, Callable[[Tensor], Tensor]] = {"minmax": minmax, "uniform": uniform, "raw": raw}
Kept = dict[str, list[int]]
Drop = Callable[[Sequence[int]], float]


def floors(units: Sequence[Units], *, adjust: float, floor: float) -> list[int]:
    """Return how many units each layer keeps at least: a rounded-down share, never none."""
    return [max(1, int((adjust if each.sensitive else floor) * each.size + 1e-9)) for each in units]


class Ranking:
    """Every unit of every layer, from the lowest score to the highest (ties: first layer first).

    Args:
        scores: per layer, a tensor (units,).
        least: per layer, how many units stay whatever their score.
        steps: per layer, of how many units what stays is a multiple, unless all stay; default 1.
    """

    def __init__(
        self, scores: Sequence[Tensor], least: Sequence[int], steps: Sequence[int] | None = None
    ) -> None:
        self.sizes = [len(each) for each in scores]
        self.least = list(least)
        self.steps = list(steps or [1] * len(self.sizes))
        layer = torch.cat([torch.full((n,), i) for i, n in enumerate(self.sizes)])
        index = torch.cat([torch.arange(n) for n in self.sizes])
        order = torch.cat([each.double().cpu() for each in scores]).argsort(stable=True)
        self.order = list(zip(layer[order].tolist(), index[order].tolist(), strict=True))

    def remove(self, lowest: int) -> list[set[int]]:
        """Return per layer which units go when the ``lowest`` units do, floors and steps observed."""
        gone: list[list[int]] = [[] for _ in self.sizes]
        for layer, index in self.order[:lowest]:
            if len(gone[layer]) < self.sizes[layer] - self.least[layer]:
                gone[layer].append(index)
        left = (
            _rounded(size - len(each), size, step)
            for each, size, step in zip(gone, self.sizes, self.steps, strict=True)
        )
        return [set(each[: size - n]) for each, size, n in zip(gone, self.sizes, left, strict=True)]

    def counts(self, gone: Sequence[set[int]]) -> list[int]:
        """Return per layer how many units are left."""
        return [size - len(each) for size, each in zip(self.sizes, gone, strict=True)]

    def kept(self, units: Sequence[Units], gone: Sequence[set[int]]) -> Kept:
        """Return per layer name the sorted indices that are left."""
        return {
            each.layer: [i for i in range(each.size) if i not in lost]
            for each, lost in zip(units, gone, strict=True)
        }


def strongest(units: Sequence[Units], scores: Sequence[Tensor], widths: Sequence[int]) -> Kept:
    """Keep in each layer the ``widths[i]`` units of the highest scores (ties: the first)."""
    orders = (s.argsort(descending=True, stable=True) for s in scores)
    return {
        each.layer: order[:width].sort().values.tolist()
        for each, order, width in zip(units, orders, widths, strict=True)
    }


def fewest(units: Sequence[Units], least: Sequence[int], round_to: int) -> list[int]:
    """Return how many units each layer keeps at least: ``least``, or up to ``round_to``'s next multiple."""
    steps = _steps(units, round_to)
    return [_rounded(n, each.size, step) for n, each, step in zip(least, units, steps, strict=True)]


def _rounded(count: int, size: int, step: int) -> int:
    return min(size, math.ceil(count / step) * step)


def _steps(units: Sequence[Units], round_to: int) -> list[int]:
    widths = [each.groups * each.span for each in units]
    return [math.lcm(round_to, width) // width for width in widths]


def by_ratio(
    units: Sequence[Units], scores: Sequence[Tensor], least: Sequence[int], ratio: float, round_to: int = 1
) -> Kept:
    """Remove the units below the ``ratio`` quantile of all scores, floors observed.

    Each layer keeps a multiple of ``round_to`` channels, rounded up, or all.
    """
    ranking = Ranking(scores, least, _steps(units, round_to))
    return ranking.kept(units, ranking.remove(int(ratio * len(ranking.order))))


def by_target(
    units: Sequence[Units],
    scores: Sequence[Tensor],
    least: Sequence[int],
    target: float,
    drop: Drop,
    round_to: int = 1,
    tolerance: float = TOLERANCE,
) -> Kept:
    """Find the threshold whose drop, a share of the dense cost, is nearest to ``target``.

    ``drop(counts)`` gives the share removed with so many units left per layer. One channel of a
    narrow network can weigh more than the tolerance: then the units next in order that still
    fit below the target fill the gap. Where layers keep multiples of ``round_to`` channels, the steps
    are coarse, and the nearest drop that a threshold gives is taken however far it is.

    Raises:
        UserError: the target lies beyond what can be removed at all, or, but for ``round_to``, nothing
            comes within the tolerance; the message gives the range, and the nearest on either side.
    """
    ranking = Ranking(scores, least, _steps(units, round_to))

    def dropped(lowest: int) -> float:
        return drop(ranking.counts(ranking.remove(lowest)))

    low, high = 0, len(ranking.order)  # the drop grows with the number removed
    steps = f" and round_to={round_to}" if round_to > 1 else ""
    miss = f"target {100 * target:.2f} %: cannot be met within {100 * tolerance:.2g} points; "
    span = f"with these floors{steps} {100 * dropped(0):.2f} to {100 * dropped(high):.2f} % can be removed"
    if target > dropped(high) + tolerance:
        raise UserError(miss + span)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if dropped(middle) <= target else (low, middle)
    nearest = min((low, high), key=lambda lowest: abs(dropped(lowest) - target))
    if round_to > 1 or abs(dropped(nearest) - target) <= tolerance:
        return ranking.kept(units, ranking.remove(nearest))
    gone, above = _fill(ranking, low, target, drop, tolerance)
    below = drop(ranking.counts(gone))
    if abs(below - target) > tolerance:
        raise UserError(f"{miss}the nearest are {100 * below:.2f} and {100 * above:.2f} %; {span}")
    return ranking.kept(units, gone)


def _fill(
    ranking: Ranking, lowest: int, target: float, drop: Drop, tolerance: float
) -> tuple[list[set[int]], float]:
    """Return which units go, and the lowest drop beyond the target that came up on the way."""
    gone, above = ranking.remove(lowest), math.inf
    for layer, index in ranking.order[lowest:]:
        if target - drop(ranking.counts(gone)) <= tolerance:
            break
        if len(gone[layer]) < ranking.sizes[layer] - ranking.least[layer]:
            gone[layer].add(index)
            reached = drop(ranking.counts(gone))
            if reached > target + tolerance:
                gone[layer].remove(index)
                above = min(above, reached)
    return gone, above
