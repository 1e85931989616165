"""Budgets: the amount to remove, and the units of a network that can go to meet it."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Self

from torch import Tensor, nn

from lpslim.base.errors import UserError
from lpslim.base.modules import Example, matches
from lpslim.pruning import selection
from lpslim.pruning.cost import CostModel, layer_costs, parameters
from lpslim.pruning.selection import Kept, Target
from lpslim.pruning.units import Units

COUNT_TOLERANCE = 300_000  # parameters, where the target is a number of them, in millions


@dataclass(frozen=True)
class Budget:
    """The amount to remove: a share of the multiply-adds, of the parameters, or else of the units."""

    ratio: float = 0.5
    target_flops: float | None = None
    target_params: float | None = None  # from 1 on: the number of parameters to be left
    round_to: int = 1  # layers keep a multiple of so many channels, or all


@dataclass(frozen=True)
class Candidates:
    """The units of a dense network that can be removed, the cost of fewer, and each layer's floor."""

    units: Sequence[Units]
    cost: CostModel
    least: Sequence[int]

    def without(self, protected: Sequence[str]) -> Self:
        """Return those in other layers; UserError if an entry names none of them, or all are protected."""
        names = [unit.layer for unit in self.units]
        makers = [(unit.layer, *(member.layer for member in unit.members)) for unit in self.units]
        if idle := [entry for entry in protected if not any(matches(n, [entry]) for n in chain(*makers))]:
            raise UserError(f"protected={idle[0]}: matches none of the prunable layers, {', '.join(names)}")
        free = [i for i, layers in enumerate(makers) if not any(matches(n, protected) for n in layers)]
        if not free:
            raise UserError(f"protected={list(protected)}: leaves no layer to prune")
        return self._at(free)

    def excluding(self, layers: Container[str]) -> Self:
        """Return those of other layers than these."""
        return self._at([i for i, unit in enumerate(self.units) if unit.layer not in layers])

    def _at(self, indices: Sequence[int]) -> Self:
        units = [self.units[i] for i in indices]
        cost = CostModel(self.cost.layers, units, self.cost.dense.params)
        return type(self)(units, cost, [self.least[i] for i in indices])

    def check(self, budget: Budget) -> None:
        """Refuse a target (UserError) that lies beyond reach."""
        if target := self._target(budget):
            selection.check_reach(self.units, self.least, target, budget.round_to)

    def select(self, scores: Sequence[Tensor], budget: Budget, part: float = 1.0) -> Kept:
        """Return the units that stay; ``scores`` are on one scale. UserError if the target cannot be met.

        part: the share of the budget that is removed; below 1 the nearest choice is taken, however far it is.
        """
        if not (target := self._target(budget)):
            return selection.by_ratio(self.units, scores, self.least, part * budget.ratio, budget.round_to)
        if part < 1:
            target = replace(target, share=part * target.share, tolerance=1.0)
        return selection.by_target(self.units, scores, self.least, target, budget.round_to)

    def _target(self, budget: Budget) -> Target | None:
        flops, params = budget.target_flops, budget.target_params
        if flops is not None:
            return Target(f"target_flops={flops:g}", flops, self.cost.flops_drop)
        if params is None:
            return None
        dense = self.cost.dense.params
        target = Target(f"target_params={params:g}", removed_share(params, dense), self.cost.params_drop)
        near = min(target.tolerance, COUNT_TOLERANCE / dense)
        return target if params < 1 else replace(target, tolerance=near, dense=dense)


def candidates(model: nn.Module, example: Example, units: Sequence[Units], **shares: float) -> Candidates:
    """Return the candidates among the units of a dense network; shares: as :func:`selection.floors`."""
    cost = CostModel(layer_costs(model, example), units, parameters(model))
    return Candidates(list(units), cost, selection.floors(units, **shares))


def removed_share(target_params: float, dense: int) -> float:
    """Return the share of ``dense`` parameters to remove; UserError if more are to be left than there are."""
    if target_params < 1:
        return target_params
    if target_params >= dense:
        raise UserError(f"target_params={target_params:g}: must be below the {dense} of the dense network")
    return 1 - target_params / dense


def only(budgets: Mapping[str, float | None], counts: bool = False) -> tuple[str, float]:
    """Return the one budget that is given; UserError if there is not one, or if it is no share.

    counts: ``target_params`` may also be the number of parameters to be left.
    """
    given = [(key, value) for key, value in budgets.items() if value is not None]
    if len(given) != 1:
        names = ", ".join(key for key, _ in given)
        raise UserError(f"give one of {', '.join(budgets)}, got {names or 'none'}")
    ((key, value),) = given
    if not (0 < value < 1 or (counts and key == "target_params" and value >= 1)):
        raise UserError(f"{key}={value}: must be above 0 and below 1")
    return key, value
