"""Pruning of a network of one's own from Python, without any configuration."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from lpslim.base.errors import UserError
from lpslim.pruning import criteria, graph
from lpslim.pruning.budget import Budget, candidates
from lpslim.pruning.cost import Cost
from lpslim.pruning.selection import SCORE_NORMS, Kept
from lpslim.pruning.units import Units


@dataclass(frozen=True)
class Pruned:
    """A smaller network, ready to be fine-tuned, and how it came about."""

    model: nn.Module  # in the mode and on the device of the original
    units: tuple[Units, ...]  # all that could be removed
    kept: Kept  # layer -> indices of the units that are left
    dense: Cost
    pruned: Cost
    input_shape: tuple[int, int, int]  # channels, height, width
    budget: str  # such as "target_flops=0.5"
    reached: float  # the share that is gone of what the budget counts

    def __str__(self) -> str:
        rows = {
            "units": (sum(unit.size for unit in self.units), sum(map(len, self.kept.values()))),
            "multiply-adds": (self.dense.macs, self.pruned.macs),
            "parameters": (self.dense.params, self.pruned.params),
        }
        lines = [f"{name}: {a:,} -> {b:,} (-{100 * (1 - b / a):.2f} %)" for name, (a, b) in rows.items()]
        return "\n".join([*lines, f"{self.budget}: reached {self.reached:.4f}"])


def prune(
    model: nn.Module,
    example: Tensor,
    *,
    target_flops: float | None = None,
    target_params: float | None = None,
    ratio: float | None = None,
    criterion: str = "magnitude",
    score_norm: str = "minmax",
    batches: criteria.Batches = (),
    floor: float = 0.1,
    protected: Sequence[str] = (),
    round_to: int = 1,
) -> Pruned:
    """Remove the channels of a network that count least; the original is left as it is.

    Args:
        model: a network that Torch-Pruning can trace; its weights W as trained, or Z of the ADMM.
        example: (1, C, H, W), on the model's device.
        target_flops, target_params, ratio: one of them, above 0 and below 1: the share of multiply-adds or of
            parameters to remove, or of the units below the threshold.
        criterion, score_norm: a module of ``pruning.criteria`` and a key of ``selection.SCORE_NORMS``.
        batches: (inputs, labels) on the model's device, for criteria that run the network.
        floor: the share of its units that every layer keeps.
        protected: layers, modules with all that is in them, or globs, that keep every unit.
        round_to: layers keep a multiple of so many channels, or all; targets are then met only nearly.

    Raises:
        UserError: not exactly one budget, an unknown name, nothing to prune, or a target out of reach.
    """
    budgets = {"target_flops": target_flops, "target_params": target_params, "ratio": ratio}
    given = {key: value for key, value in budgets.items() if value is not None}
    if len(given) != 1:
        raise UserError(f"give one of {', '.join(budgets)}, got {', '.join(given) or 'none'}")
    ((key, value),) = given.items()
    if not 0 < value < 1:
        raise UserError(f"{key}={value}: must be above 0 and below 1")
    if not 0 <= floor < 1 or round_to < 1:
        raise UserError(f"floor={floor}, round_to={round_to}: must be in [0, 1) and 1 or more")
    if score_norm not in SCORE_NORMS:
        raise UserError(f"score_norm={score_norm}: must be one of {', '.join(SCORE_NORMS)}")
    smaller, budget = copy.deepcopy(model), Budget(**{key: value}, round_to=round_to)
    units = graph.discover(smaller, example, protected)
    if not units:
        raise UserError("no layer can lose channels: all are protected, added, concatenated, tied or outputs")
    dense = candidates(smaller, example, units, adjust=floor, floor=floor)
    dense.check(budget)
    scores = criteria.score(criterion, smaller, units, batches)
    kept = dense.select([SCORE_NORMS[score_norm](s) for s in scores], budget)
    graph.prune(smaller, example, kept)
    widths, cost = [len(kept[unit.layer]) for unit in units], dense.cost
    drops = {"target_flops": cost.flops_drop, "target_params": cost.params_drop}
    reached = drops[key](widths) if key in drops else 1 - sum(widths) / sum(unit.size for unit in units)
    shape = (example.shape[1], example.shape[2], example.shape[3])
    return Pruned(smaller, tuple(units), kept, cost.dense, cost(widths), shape, f"{key}={value:g}", reached)
