"""From scores to the units that stay: one global order, floors per layer, and a ratio or a target.

All units of all layers are ranked together; the lowest go first, except where a layer has reached its floor
(Ji et al. 2025). Inside a layer the lowest always go first, so a choice is known by its widths: the number of
units that each layer keeps.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lpslim.base.errors import UserError
from lpslim.pruning.units import Units

TOLERANCE = 0.003  # of the dense cost: 0.3 points
COUPLED_FLOOR = 0.5  # all blocks of a stage read what is added up: it is the last to become narrow
Kept = dict[str, list[int]]


def minmax(values: Tensor) -> Tensor:
    """Return values (n,) mapped to [0, 1] by their own minimum and maximum; equal ones to 0."""
    low, high = values.aminmax()
    return torch.zeros_like(values) if low == high else (values - low) / (high - low)


def uniform(values: Tensor) -> Tensor:
    """Return the share of the values (n,) below each value: every layer then loses the same share."""
    return values.argsort(stable=True).argsort().double() / len(values)


SCORE_NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "minmax": minmax, "uniform": uniform, "raw": lambda values: values,  # one threshold for all layers
}  # fmt: skip


def of_units(units: Sequence[Units], scores: Mapping[str, Tensor], norm: str) -> list[Tensor]:
    """Return the normalised scores (size,) of each layer's units: of coupled ones the members' highest.

    What is added up is worth what it is to the layer that needs it most. Of several channels of a member the
    mean counts.

    scores: layer -> scores of what ``criteria.layers`` lists; members without any do not count. norm: a key
    of SCORE_NORMS, which acts inside a layer.
    """
    normed, result = {layer: SCORE_NORMS[norm](own) for layer, own in scores.items()}, []
    for unit in units:
        rows = {cut.name: unit.rows(cut) for cut in unit.cuts if not cut.reads}
        members = [member.layer for member in unit.members if member.layer in normed]
        parts = [normed[layer][torch.tensor(rows[layer])].mean(dim=1) for layer in members]
        result.append(torch.stack(parts).amax(dim=0) if parts else normed[unit.layer])
    return result


@dataclass(frozen=True)
class Target:
    """A share of the dense cost to remove, and its setting (key and value as typed) for messages."""

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


def floors(
    units: Sequence[Units], *, adjust: float, floor: float, coupled_floor: float = COUPLED_FLOOR
) -> list[int]:
    """Return the units that each layer keeps at least: a rounded-down share, never none."""
    shares = [coupled_floor if u.coupled else adjust if u.sensitive else floor for u in units]
    return [max(1, int(share * unit.size + 1e-9)) for unit, share in zip(units, shares, strict=True)]


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


def by_ratio(
    units: Sequence[Units], scores: Sequence[Tensor], least: Sequence[int], ratio: float, round_to: int = 1
) -> Kept:
    """Remove the units below the ``ratio`` quantile of all scores, as far as floors and rounding allow."""
    order = _order(scores)
    removed = int(ratio * len(order) + 1e-9)  # 0.29 * 100 is 29, not 28.999999999999996
    widths = _widths(units, order[:removed], least, round_to)
    return strongest(units, scores, widths)


def by_target(
    units: Sequence[Units], scores: Sequence[Tensor], least: Sequence[int], target: Target, round_to: int = 1
) -> Kept:
    """Remove the units below the threshold whose drop is nearest to the target; UserError if it is not met.

    One channel of a narrow network can weigh more than the tolerance: then the units next in order that still
    fit below the target fill the gap. With ``round_to`` the nearest threshold is taken however far it is.
    """
    check_reach(units, least, target, round_to)
    order = _order(scores)
    low, high = 0, len(order)
    while high - low > 1:  # the drop grows with the number of units removed
        middle = (low + high) // 2
        over = target.drop(_widths(units, order[:middle], least, round_to)) > target.share
        low, high = (low, middle) if over else (middle, high)
    below, above = (_widths(units, order[:removed], least, round_to) for removed in (low, high))
    nearest = min(below, above, key=lambda widths: abs(target.drop(widths) - target.share))
    if round_to == 1 and not target.met(nearest):
        nearest = _filled(below, order[low:], least, target)
    return strongest(units, scores, nearest)


def check_reach(units: Sequence[Units], least: Sequence[int], target: Target, round_to: int = 1) -> None:
    """Refuse a target (UserError) beyond the drop of all layers at their floors."""
    most = target.drop(fewest(units, least, round_to))
    if target.share > most + target.tolerance:
        limit = f"{'at least' if target.dense else 'at most'} {target.shown(most)}"
        steps = f" and round_to={round_to}" if round_to > 1 else ""
        raise UserError(f"{target.setting}: must be {limit}, the most that the layers' floors{steps} allow")


def _order(scores: Sequence[Tensor]) -> list[int]:
    """Return the layer of every unit, from the lowest score to the highest (ties: first layer first)."""
    layers = torch.cat([torch.full((len(s),), i) for i, s in enumerate(scores)])
    return layers[torch.cat([s.double().cpu() for s in scores]).argsort(stable=True)].tolist()


def _widths(units: Sequence[Units], removed: Sequence[int], least: Sequence[int], round_to: int) -> list[int]:
    """Return the widths without units of the layers ``removed``, floors and rounding observed."""
    gone = Counter(removed)
    left = [max(unit.size - gone[i], n) for i, (unit, n) in enumerate(zip(units, least, strict=True))]
    return fewest(units, left, round_to)


def _filled(widths: list[int], order: Sequence[int], least: Sequence[int], target: Target) -> list[int]:
    """Return the widths after removing the next units in order that still fit the target."""
    above = math.inf
    for layer in order:
        if widths[layer] == least[layer]:
            continue
        narrower = [n - (i == layer) for i, n in enumerate(widths)]
        if target.met(narrower):
            return narrower
        if (drop := target.drop(narrower)) > target.share:
            above = min(above, drop)
        else:
            widths = narrower
    limits = f"within {100 * target.tolerance:.2g} points"
    nearest = f"{target.shown(target.drop(widths))} and {target.shown(above)}"
    raise UserError(f"{target.setting}: cannot be met {limits}; the nearest are {nearest}")
