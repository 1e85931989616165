"""Pruning a network of one's own from Python, without any configuration."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from lpslim.base import registry
from lpslim.base.errors import UserError
from lpslim.models import storage
from lpslim.models.storage import Architecture
from lpslim.pruning import graph, selection
from lpslim.pruning.cost import Cost, CostModel, layer_costs
from lpslim.pruning.selection import Kept
from lpslim.pruning.units import Units, pooled


@dataclass(frozen=True)
class Pruned:
    """A smaller network and how it came about.

    model: ready to be fine-tuned, in the mode and on the device of the original. units: what could
    be removed. kept: layer -> indices of the units that are left. dense, pruned: cost of one input.
    input_shape: (channels, height, width). budget: the name and the share that were asked for.
    """

    model: nn.Module
    units: tuple[Units, ...]
    kept: Kept
    dense: Cost
    pruned: Cost
    input_shape: tuple[int, int, int]
    budget: tuple[str, float]

    @property
    def reached(self) -> float:
        """The share that is gone of what the budget counts: multiply-adds, parameters or units."""
        units = sum(each.size for each in self.units), sum(map(len, self.kept.values()))
        before, after = {
            "target_flops": (self.dense.macs, self.pruned.macs),
            "target_params": (self.dense.params, self.pruned.params),
        }.get(self.budget[0], units)
        return 1 - after / before

    def __str__(self) -> str:
        all_of, left = sum(each.size for each in self.units), sum(map(len, self.kept.values()))
        rows = (("multiply-adds", self.dense.macs, self.pruned.macs),
                ("parameters", self.dense.params, self.pruned.params))  # fmt: skip
        lines = [f"{left} of {all_of} units left in {len(self.units)} layers"]
        lines += [
            f"{name}: {a / 1e6:.2f} M -> {b / 1e6:.2f} M (-{100 * (1 - b / a):.2f} %)" for name, a, b in rows
        ]
        name, asked = self.budget
        return "\n".join([*lines, f"{name}={asked:g}: reached {self.reached:.4f}"])


def prune(
    model: nn.Module,
    example: Tensor,
    *,
    target_flops: float | None = None,
    target_params: float | None = None,
    ratio: float | None = None,
    criterion: str = "magnitude",
    across: str = "minmax",
    batches: Iterable[Tensor] = (),
    floor: float = 0.1,
    protected: Sequence[str] = (),
    round_to: int = 1,
) -> Pruned:
    """Remove the channels of a network that count least; the original is left as it is.

    Args:
        model: a network that Torch-Pruning can trace; W as trained, or Z of :class:`lpslim.sparsity.admm.ADMM`.
        example: (1, C, H, W), on the model's device.
        target_flops, target_params, ratio: one of them, above 0 and below 1: the share of multiply-adds
            or of parameters to remove, or of the units below the threshold.
        criterion: a module of :mod:`lpslim.pruning.criteria`.
        across: how scores of different layers are compared, a key of :data:`lpslim.pruning.selection.ACROSS`.
        batches: images (B, C, H, W) on the model's device, for criteria that look at feature maps.
        floor: the share of its units that every layer keeps.
        protected: layers, modules with all that is in them, or globs, that keep every unit.
        round_to: the channels that a layer keeps are a multiple of this, or all; a target within reach is
            then met as nearly as such widths allow, which :attr:`Pruned.reached` tells.

    Raises:
        UserError: not exactly one budget, an unknown name, nothing to prune, or a target out of reach.
    """
    budgets = {"target_flops": target_flops, "target_params": target_params, "ratio": ratio}
    given = {name: value for name, value in budgets.items() if value is not None}
    if len(given) != 1:
        raise UserError(f"give one of {', '.join(budgets)}, got {', '.join(given) or 'none'}")
    ((name, share),) = given.items()
    if not 0 < share < 1:
        raise UserError(f"{name}={share}: must be above 0 and below 1")
    if not 0 <= floor < 1 or round_to < 1:
        raise UserError(f"floor={floor}, round_to={round_to}: must be in [0, 1) and 1 or more")
    if across not in selection.ACROSS:
        raise UserError(f"across={across!r}: must be one of {', '.join(selection.ACROSS)}")
    score = lookup.find("criteria", criterion).score
    smaller = copy.deepcopy(model)
    layers = layer_costs(smaller, example)  # first: it refuses in a moment what tracing would take hours for
    units = surgery.discover(smaller, example, protected)
    if not units:
        raise UserError("no layer can lose channels: all are protected, added, concatenated, tied or outputs")
    cost = CostModel(layers, units, sum(p.numel() for p in smaller.parameters()))
    scores = [selection.ACROSS[across](s) for s in pooled(units, score(smaller, units, batches))]
    least = selection.floors(units, adjust=floor, floor=floor)
    if name == "ratio":
        kept = selection.by_ratio(units, scores, least, share, round_to)
    else:
        drop = cost.flops_drop if name == "target_flops" else cost.params_drop
        kept = selection.by_target(units, scores, least, share, drop, round_to)
    surgery.prune(smaller, example, kept)
    left = cost([len(kept[each.layer]) for each in units])
    _, channels, height, width = example.shape
    shape = (channels, height, width)
    return Pruned(smaller, tuple(units), kept, cost.dense, left, shape, (name, share))


def save(folder: str | Path, pruned: Pruned) -> None:
    """Write a pruned network: JSON of what is kept, and safetensors. :func:`lpslim.load` reads it.

    A weight that several layers have is written for each; they have it in common again once loaded.

    Raises:
        FileExistsError: the folder holds a network already.
    """
    folder = Path(folder)
    if (folder / architecture.DESCRIPTION).exists():
        raise FileExistsError(f"{folder} holds a network already")
    folder.mkdir(parents=True, exist_ok=True)
    described = Architecture(None, type(pruned.model).__name__, pruned.input_shape, {}, pruned.kept)
    architecture.save(folder, pruned.model, described)
