"""From scores to the units that stay: one global order, floors per layer, and a ratio or a target.

All units of all layers are ranked together; the lowest go first, except where a layer has reached its floor
(Ji et al. 2025). Inside a layer the lowest always go first, so a choice is known by its widths: the number of
units that each layer keeps.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lpslim.base.errors import UserError
from lpslim.pruning.units import Units

TOLERANCE = 0.003  # of the dense cost: 0.3 points
Kept = dict[str, list[int]]


def minmax(values: Tensor) -> Tensor:
    """Return values (n,) mapped to [0, 1] by their own minimum and maximum; equal ones to 0."""
    low, high = values.aminmax()
    return torch.zeros_like(values) if low == high else (values - low) / (high - low)


def uniform(values: Tensor) -> Tensor:
    """Return the share of the values (n,) below each value: every layer then loses the same share."""
    return values.argsort(stable=True).argsort().double() / len(values)


def raw(values: Tensor) -> Tensor:
    """Return values (n,) as they are: one threshold for all layers."""
    return values


SCORE_NORMS: dict[str, Callable[[Tensor], Tensor]] = {"minmax": minmax, "uniform": uniform, "raw": raw}


@dataclass(frozen=True)
class Target:
    """A share of the dense cost to remove, and its setting, key and value as typed, for messages."""

    setting: str
    share: float
    drop: Callable[[Sequence[int]], float]  # widths -> the share that is gone
    tolerance: float = TOLERANCE
    dense: int = 0  # the dense network's parameters, where the value is the number to be left

    def met(self, widths: Sequence[int]) -> bool:
        """Return whether the drop at these widths is within the tolerance."""
        return abs(self.drop(widths) - self.share) <= self.tolerance

    def shown(self, share: float) -> str:
        """Return a share as a value of the setting: itself, or the number of parameters left."""
        return str(math.ceil((1 - share) * self.dense)) if self.dense else f"{share:.4f}"


def floors(units: Sequence[Units], *, adjust: float, floor: float) -> list[int]:
    """Return the units that each layer keeps at least: a rounded-down share, never none."""
    return [max(1, int((adjust if unit.sensitive else floor) * unit.size + 1e-9)) for unit in units]


def fewest(units: Sequence[Units], least: Sequence[int], round_to: int) -> list[int]:
    """Return ``least`` units per layer, rounded up to a multiple of ``round_to`` channels, or all."""
    channels = [unit.groups * unit.head_dim for unit in units]
    steps = [math.lcm(round_to, n) // n for n in channels]
    rounded = [math.ceil(n / step) * step for n, step in zip(least, steps, strict=True)]
    return [min(unit.size, n) for unit, n in zip(units, rounded, strict=True)]


def strongest(units: Sequence[Units], scores: Sequence[Tensor], widths: Sequence[int]) -> Kept:
    """Keep in each layer the ``widths[i]`` units of the highest scores (ties: the last)."""
    orders = [s.cpu().argsort(stable=True)[len(s) - n :] for s, n in zip(scores, widths, strict=True)]
    return {unit.layer: order.sort().values.tolist() for unit, order in zip(units, orders, strict=True)}


class Ranking:
    """All units of all layers, from the lowest score to the highest (ties: first layer, first unit first).

    scores: per layer, a tensor (units,). least: per layer, the units that stay whatever their score.
    round_to: the channels that a layer keeps are a multiple of this, rounded up, or all.
    """

    def __init__(
        self, units: Sequence[Units], scores: Sequence[Tensor], least: Sequence[int], round_to: int = 1
    ) -> None:
        self.units, self.least, self.round_to = units, least, round_to
        layers = torch.cat([torch.full((len(s),), i) for i, s in enumerate(scores)])
        order = torch.cat([s.double().cpu() for s in scores]).argsort(stable=True)
        self.layers: list[int] = layers[order].tolist()  # the layer of each unit, lowest score first

    def widths(self, removed: int) -> list[int]:
        """Return the widths once the ``removed`` lowest units are gone, floors and rounding observed."""
        gone = Counter(self.layers[:removed])
        left = [unit.size - gone[i] for i, unit in enumerate(self.units)]
        return fewest(self.units, list(map(max, left, self.least)), self.round_to)


def by_ratio(
    units: Sequence[Units], scores: Sequence[Tensor], least: Sequence[int], ratio: float, round_to: int = 1
) -> Kept:
    """Remove the units below the ``ratio`` quantile of all scores, as far as floors and rounding allow."""
    ranking = Ranking(units, scores, least, round_to)
    return strongest(units, scores, ranking.widths(int(ratio * len(ranking.layers))))


def by_target(
    units: Sequence[Units], scores: Sequence[Tensor], least: Sequence[int], target: Target, round_to: int = 1
) -> Kept:
    """Remove the units below the threshold whose drop is nearest to the target.

    One channel of a narrow network can weigh more than the tolerance: then the units next in order that still
    fit below the target fill the gap. With ``round_to`` the nearest threshold is taken however far it is.

    Raises:
        UserError: the target lies beyond reach, or (without ``round_to``) between two choices.
    """
    check_reach(units, least, target, round_to)
    ranking = Ranking(units, scores, least, round_to)
    below, above = _search(ranking, target)
    nearest = min(
        ranking.widths(below), ranking.widths(above), key=lambda n: abs(target.drop(n) - target.share)
    )
    filled = nearest if round_to > 1 or target.met(nearest) else _fill(ranking, below, target)
    return strongest(units, scores, filled)


def check_reach(units: Sequence[Units], least: Sequence[int], target: Target, round_to: int = 1) -> None:
    """Refuse a target (UserError) beyond the drop of all layers at their floors."""
    most = target.drop(fewest(units, least, round_to))
    if target.share > most + target.tolerance:
        limit = f"{'at least' if target.dense else 'at most'} {target.shown(most)}"
        steps = f" and round_to={round_to}" if round_to > 1 else ""
        raise UserError(f"{target.setting}: must be {limit}, the most that the layers' floors{steps} allow")


def _search(ranking: Ranking, target: Target) -> tuple[int, int]:
    """Return the numbers of removed units next to the target on either side: the drop grows with them."""
    low, high = 0, len(ranking.layers)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if target.drop(ranking.widths(middle)) <= target.share else (low, middle)
    return low, high


def _fill(ranking: Ranking, removed: int, target: Target) -> list[int]:
    """Return the widths after removing, beyond the lowest, the next units in order that fit the target."""
    widths, above = ranking.widths(removed), math.inf
    for layer in ranking.layers[removed:]:
        if target.met(widths):
            break
        if widths[layer] > ranking.least[layer]:
            narrower = [n - (i == layer) for i, n in enumerate(widths)]
            drop = target.drop(narrower)
            if drop <= target.share + target.tolerance:
                widths = narrower
            else:
                above = min(above, drop)
    if target.met(widths):
        return widths
    nearest = f"{target.shown(target.drop(widths))} and {target.shown(above)}"
    raise UserError(
        f"{target.setting}: cannot be met within {100 * target.tolerance:.2g} points; nearest are {nearest}"
    )
