"""Budgets: the amount to remove, and the units of a network that can go to meet it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from lpslim.base.errors import UserError
from lpslim.base.modules import matches
from lpslim.pruning import selection
from lpslim.pruning.cost import CostModel, layer_costs, parameters
from lpslim.pruning.selection import Kept, Target
from lpslim.pruning.units import Units

log = logging.getLogger(__name__)

COUNT_TOLERANCE = 300_000  # parameters, where the target is a number of them, in millions


@dataclass(frozen=True)
class Budget:
    """The amount to remove: a share of the multiply-adds, of the parameters, or of the units (``ratio``).

    A target wins over the ratio. ``target_params`` from 1 on is the number of parameters to be left. Layers
    keep a multiple of ``round_to`` channels, or all.
    """

    ratio: float = 0.5
    target_flops: float | None = None
    target_params: float | None = None
    round_to: int = 1


@dataclass(frozen=True)
class Candidates:
    """The units of a dense network that can be removed, the cost of fewer, and each layer's floor."""

    units: Sequence[Units]
    cost: CostModel
    least: Sequence[int]

    def without(self, protected: Sequence[str]) -> Candidates:
        """Return the candidates in the layers that ``protected`` does not name (:func:`matches`).

        Raises:
            UserError: an entry names no layer, or all are protected.
        """
        names = [unit.layer for unit in self.units]
        if idle := [entry for entry in protected if not any(matches(name, [entry]) for name in names)]:
            raise UserError(f"protected={idle[0]}: matches none of the prunable layers, {', '.join(names)}")
        free = [i for i, name in enumerate(names) if not matches(name, protected)]
        if not free:
            raise UserError(f"protected={list(protected)}: leaves no layer to prune")
        units = [self.units[i] for i in free]
        cost = CostModel(self.cost.layers, units, self.cost.dense.params)
        return Candidates(units, cost, [self.least[i] for i in free])

    def check(self, budget: Budget) -> None:
        """Refuse a target (UserError) that lies beyond reach."""
        if target := self._target(budget):
            selection.check_reach(self.units, self.least, target, budget.round_to)

    def select(self, scores: Sequence[Tensor], budget: Budget) -> Kept:
        """Return the units that stay; ``scores`` are on one scale. UserError if the target cannot be met."""
        if not (target := self._target(budget)):
            return selection.by_ratio(self.units, scores, self.least, budget.ratio, budget.round_to)
        kept = selection.by_target(self.units, scores, self.least, target, budget.round_to)
        widths = [len(kept[unit.layer]) for unit in self.units]
        if not target.met(widths):
            nearest = target.shown(target.drop(widths))
            log.warning("%s: the nearest with round_to=%d is %s", target.setting, budget.round_to, nearest)
        return kept

    def _target(self, budget: Budget) -> Target | None:
        dense = self.cost.dense.params
        if (share := budget.target_flops) is not None:
            return Target(f"target_flops={share:g}", share, self.cost.flops_drop)
        if (value := budget.target_params) is None:
            return None
        setting, share = f"target_params={value:g}", removed_share(value, dense)
        if value < 1:
            return Target(setting, share, self.cost.params_drop)
        near = min(selection.TOLERANCE, COUNT_TOLERANCE / dense)
        return Target(setting, share, self.cost.params_drop, near, dense)


def candidates(
    model: nn.Module, example: Tensor, units: Sequence[Units], *, adjust: float, floor: float
) -> Candidates:
    """Return the candidates among the units of a dense network; adjust, floor: shares that layers keep."""
    cost = CostModel(layer_costs(model, example), units, parameters(model))
    return Candidates(list(units), cost, selection.floors(units, adjust=adjust, floor=floor))


def removed_share(target_params: float, dense: int) -> float:
    """Return the share of ``dense`` parameters to remove; UserError if more are to be left than there are."""
    if target_params < 1:
        return target_params
    if target_params >= dense:
        raise UserError(f"target_params={target_params:g}: must be below the {dense} of the dense network")
    return 1 - target_params / dense
