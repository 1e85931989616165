"""What can be pruned from a network, what that saves, and whether what is asked can be done."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from lpslim.base import registry
from lpslim.base.errors import UserError
from lpslim.data.splits import Data, example
from lpslim.experiment.config import Config
from lpslim.experiment.keys import architecture_of
from lpslim.pruning import selection
from lpslim.pruning.cost import CostModel, layer_costs
from lpslim.pruning.units import Units, is_protected, regularised_weights
from lpslim.training.regularizers.bn_l1 import scales

log = logging.getLogger(__name__)

COUNT_TOLERANCE = 300_000  # parameters, where it is a number of them that is asked for, in millions


@dataclass(frozen=True)
class Target:
    """What is asked for: key and value as given, the share to remove, how that is counted, how near."""

    key: str
    given: float
    share: float
    drop: selection.Drop
    tolerance: float


@dataclass(frozen=True)
class Survey:
    """The dense network's prunable units, what fewer of them cost, and how few may be left."""

    units: list[Units]
    cost: CostModel
    least: list[int]

    def without(self, protected: Sequence[str]) -> Survey:
        """Return the survey of the layers that ``protected`` does not name (:func:`units.is_protected`).

        Raises:
            UserError: one entry names none of them, or all are protected.
        """
        names = [each.layer for each in self.units]
        if idle := [each for each in protected if not any(is_protected(name, [each]) for name in names)]:
            raise UserError(f"protected={idle[0]}: matches none of the prunable layers, {', '.join(names)}")
        free = [i for i, name in enumerate(names) if not is_protected(name, protected)]
        if not free:
            raise UserError(f"protected={list(protected)}: leaves no layer to prune")
        units = [self.units[i] for i in free]
        cost = CostModel(self.cost.layers, units, self.cost.dense.params)
        return Survey(units, cost, [self.least[i] for i in free])

    def target(self, config: Config) -> Target | None:
        """Return the target that is set, if any.

        Raises:
            UserError: more parameters are to be left than there are.
        """
        if (removed := config.target_flops) is not None:
            return Target("target_flops", removed, removed, self.cost.flops_drop, selection.TOLERANCE)
        if (given := config.target_params) is not None:
            dense = self.cost.dense.params
            near = selection.TOLERANCE if given < 1 else min(selection.TOLERANCE, COUNT_TOLERANCE / dense)
            return Target("target_params", given, share(given, dense), self.cost.params_drop, near)
        return None

    def kept(self, config: Config, scores: list[Tensor]) -> selection.Kept:
        """Return the units that stay under the configured budget.

        Raises:
            UserError: the target cannot be met.
        """
        target, step = self.target(config), config.round_to
        if target is None:
            return selection.by_ratio(self.units, scores, self.least, config.ratio, step)
        kept = selection.by_target(
            self.units, scores, self.least, target.share, target.drop, step, target.tolerance
        )
        reached = target.drop([len(kept[each.layer]) for each in self.units])
        if abs(reached - target.share) > target.tolerance:
            given = f"{target.key}={target.given:g}"
            found = f"{reached:.4f}" if target.given < 1 else round((1 - reached) * self.cost.dense.params)
            log.warning("%s: the nearest with round_to=%d is %s", given, step, found)
        return kept


def survey(config: Config, model: nn.Module, data: Data) -> Survey:
    """Look at the dense network."""
    layers = layer_costs(model, example(data.shape))  # before any tracing: it refuses quickly
    units = architecture_of(config.model, data).units(model)
    cost = CostModel(layers, units, sum(p.numel() for p in model.parameters()))
    return Survey(units, cost, selection.floors(units, adjust=config.adjust, floor=config.model.floor))


def check_target(config: Config, data: Data) -> None:
    """Refuse, before anything is trained, what the network cannot do or a target beyond the floors.

    Raises:
        UserError: inputs do not fit, a criterion or penalty finds nothing to look at, an entry of
            ``protected`` names no layer, or a target lies beyond what can be reached.
    """
    try:
        model = architecture_of(config.model, data).build()
        found = survey(config, model, data)
    except (IndexError, RuntimeError) as problem:  # too small for its poolings, or too long a text
        raise UserError(
            f"model={config.model.name}: does not take inputs {data.shape}: {problem}"
        ) from problem
    family = lookup.find("models", config.model.family)
    if hasattr(family, "check"):
        family.check(model, data)
    if config.structure == "weights":
        _check_weights(config, model, found.cost.dense.params)
        return
    found = found.without(config.protected)
    for name in (config.criterion.name, config.criterion.widths):
        criterion = lookup.find("criteria", name) if name else None
        if criterion and hasattr(criterion, "check"):
            criterion.check(model, found.units)
    if config.regularizer.penalty == "bn_scale" and not scales(model):
        raise UserError(f"regularizer.penalty=bn_scale: {config.model.name} has no batch-norm with a scale")
    if target := found.target(config):
        _check_reach(config, found, target)


def _check_reach(config: Config, found: Survey, target: Target) -> None:
    most = target.drop(selection.fewest(found.units, found.least, config.round_to))
    if target.share <= most + target.tolerance:
        return
    left = math.ceil((1 - most) * found.cost.dense.params)
    limit = f"at most {most:.4f}" if target.given < 1 else f"at least {left}"
    steps = f", round_to={config.round_to}" if config.round_to > 1 else ""
    raise UserError(
        f"{target.key}={target.given:g}: must be {limit}: with these floors "
        f"(adjust={config.adjust}, model.floor={config.model.floor}, one channel a layer{steps}) "
        "no more can be removed"
    )


def _check_weights(config: Config, model: nn.Module, dense: int) -> None:
    if config.target_params is None:
        return
    most = sum(weight.numel() for weight in regularised_weights(model).values()) / dense
    if share(config.target_params, dense) >= most:
        raise UserError(
            f"target_params={config.target_params:g}: must be below {most:.4f}, the share of the weights of "
            "convolutions and linear layers"
        )


def share(target_params: float, dense: int) -> float:
    """Return the share of ``dense`` parameters to remove: 1 or more is how many are to be left.

    Raises:
        UserError: more are to be left than there are.
    """
    if target_params < 1:
        return target_params
    if target_params >= dense:
        raise UserError(f"target_params={target_params:g}: must be below the {dense} of the dense network")
    return 1 - target_params / dense
