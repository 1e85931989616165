"""Pruning of a network of one's own from Python, without any configuration."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from lpslim.base.errors import UserError, reasons
from lpslim.base.modules import Example, copied, eval_mode
from lpslim.pruning import check as exactness
from lpslim.pruning import criteria
from lpslim.pruning.budget import Budget, Candidates, candidates, only
from lpslim.pruning.cost import Cost, count
from lpslim.pruning.dependency import apply
from lpslim.pruning.selection import COUPLED_FLOOR, SCORE_NORMS, Kept, of_units
from lpslim.pruning.units import Cut, Units

VARYING = r"'[^']*'|[(\[].*[)\]]|\d[\d.e+-]*"  # names, shapes and numbers in the reasons of several layers


@dataclass(frozen=True)
class Pruned:
    """A smaller network, ready to be fine-tuned, and how it came about."""

    model: nn.Module  # in the mode and on the device of the original
    units: tuple[Units, ...]  # all that could be removed
    kept: Kept  # layer -> indices of the units that are left
    dense: Cost
    pruned: Cost
    example: Example
    budget: str  # such as "target_flops=0.5"
    reached: float  # the share that is gone of what the budget counts
    left_alone: dict[str, str] = field(default_factory=dict)  # layer that keeps its width -> reason
    checked: tuple[str, ...] = ()  # the modes that it was compared in: evaluation, training

    def __str__(self) -> str:
        rows = {
            "units": (sum(unit.size for unit in self.units), sum(map(len, self.kept.values()))),
            "multiply-adds": (self.dense.macs, self.pruned.macs),
            "parameters": (self.dense.params, self.pruned.params),
        }
        lines = [f"{name}: {a:,} -> {b:,} (-{100 * (1 - b / a):.2f} %)" for name, (a, b) in rows.items()]
        if len(self.checked) == 1:
            why = "in the other mode the original does not run, or has no finite output"
            lines.append(f"compared in {self.checked[0]} mode alone: {why}")
        left = [f"left alone: {line}" for line in _grouped(self.left_alone)]
        return "\n".join([*lines, *left, f"{self.budget}: reached {self.reached:.4f}"])


def prune(
    model: nn.Module,
    example: Example,
    *,
    target_flops: float | None = None,
    target_params: float | None = None,
    ratio: float | None = None,
    criterion: str = "magnitude",
    score_norm: str = "minmax",
    batches: criteria.Batches = (),
    floor: float = 0.1,
    coupled: bool = False,
    coupled_floor: float = COUPLED_FLOOR,
    protected: str | Sequence[str] = (),
    round_to: int = 1,
    check: bool = True,
) -> Pruned:
    """Remove the channels of a network that count least; the original is left as it is.

    The result computes what the original does where every layer that reads a removed channel reads zero:
    that was checked, and layers whose channels cannot go in this way are in ``Pruned.left_alone``.

    Args:
        model: a network that Torch-Pruning can trace; its weights W as trained, or Z of the ADMM.
        example: one input, such as (1, C, H, W), on the model's device; several as a tuple, or a dict.
        target_flops, target_params, ratio: one of them, above 0 and below 1: the share of multiply-adds or of
            parameters to remove, or of the units below the threshold.
        criterion, score_norm: a module of ``pruning.criteria`` and a key of ``selection.SCORE_NORMS``.
        batches: (inputs, labels) on the model's device, for criteria that run the network.
        floor, coupled_floor: the least share of its units that a layer keeps, and where they are coupled.
        coupled: whether channels that are added to, or concatenated with, those of other layers go as well.
        protected: layers, modules with all that is in them, or globs, that keep every unit.
        round_to: layers keep a multiple of so many channels, or all; targets are then met only nearly.
        check: whether to compare the result with the original, which takes a few forward passes; without it
            a channel that meets a buffer, as in ``x + self.offset``, is cut, and the network fails.

    Raises:
        UserError: not exactly one budget, an unknown name, nothing to prune, or a target out of reach.
    """
    if not (0 <= floor < 1 and 0 <= coupled_floor < 1) or round_to < 1:
        given = f"coupled_floor={coupled_floor}, floor={floor}, round_to={round_to}"
        raise UserError(f"{given}: must be in [0, 1), and round_to 1 or more")
    if not isinstance(example, torch.Tensor | tuple | Mapping):
        raise UserError(f"example={example!r:.60}: must be a tensor, or a tuple or dict of inputs")
    if score_norm not in SCORE_NORMS:
        raise UserError(f"score_norm={score_norm}: must be one of {', '.join(SCORE_NORMS)}")
    key, value = only({"target_flops": target_flops, "target_params": target_params, "ratio": ratio})
    example = dict(example) if isinstance(example, Mapping) else example
    smaller, budget = _copied(model), Budget(**{key: value}, round_to=round_to)
    with eval_mode(smaller):
        with _uncalled(model):
            survey = exactness.survey(smaller, example, protected, check=check, coupled=coupled)
        units = _remaining(survey.units, survey.left)
        dense = candidates(smaller, example, units, adjust=floor, floor=floor, coupled_floor=coupled_floor)
        dense.check(budget)
        scores = of_units(units, criteria.score(criterion, smaller, units, batches), score_norm)
        dense, kept, cuts = _chosen(dense, scores, budget, survey)
        apply(smaller, cuts)
        widths = [len(kept[unit.layer]) for unit in dense.units]
        before, after = dense.cost.dense, count(smaller, example) if check else dense.cost(widths)
    counts = {"target_flops": (after.macs, before.macs), "target_params": (after.params, before.params)}
    now, then = counts.get(key, (sum(widths), sum(unit.size for unit in dense.units)))
    runs = survey.comparison.runs if survey.comparison else []
    return Pruned(
        model=smaller, units=tuple(dense.units), kept=kept, dense=before, pruned=after, example=example,
        budget=f"{key}={value:g}", reached=1 - now / then, left_alone=survey.left,
        checked=tuple(dict.fromkeys(run.mode for run in runs)),
    )  # fmt: skip


def _chosen(
    dense: Candidates, scores: Sequence[torch.Tensor], budget: Budget, survey: exactness.Survey
) -> tuple[Candidates, Kept, list[Cut]]:
    """Choose units to keep; layers that fail in a choice are left alone, and it is made again."""
    scored = {unit.layer: own for unit, own in zip(dense.units, scores, strict=True)}
    while True:
        kept = dense.select([scored[unit.layer] for unit in dense.units], budget)
        cuts = survey.graph.cuts(kept)
        failing = survey.comparison.failing(cuts) if survey.comparison else {}
        if not failing:
            return dense, kept, [cut for some in cuts.values() for cut in some]
        survey.left.update(failing)
        _remaining(dense.units, survey.left)
        dense = dense.excluding(failing)
        dense.check(budget)


def _grouped(left: Mapping[str, str]) -> list[str]:
    """Return layers that keep their width in lines, those of like reasons in one."""
    alike: dict[str, list[str]] = {}
    for layer, reason in left.items():
        alike.setdefault(re.sub(VARYING, "", reason), []).append(layer)
    lines = []
    for first, *others in alike.values():
        layers = f"{1 + len(others)} layers, {first}, ..." if others else first
        lines.append(f"{layers}: {left[first]}")
    return lines


def _remaining(units: Sequence[Units], left: Mapping[str, str]) -> list[Units]:
    """Return the units of layers that are not left alone; UserError, with the reasons, if there are none."""
    remaining = [unit for unit in units if unit.layer not in left]
    if not remaining:
        why = "all are protected, added, concatenated, tied, outputs or left alone"
        raise UserError(f"no layer can lose channels: {why}{reasons(left)}")
    return remaining


def _copied(model: nn.Module) -> nn.Module:
    """Return a copy of a network; UserError, with the way out, for one that cannot be pruned as it is."""
    kind = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule):
        raise UserError(f"{kind}: a script cannot be cut: prune what it was made from, then script it")
    inference = f"{kind}: torch.inference_mode() cannot be traced: build and prune it outside"
    if torch.is_inference_mode_enabled():
        raise UserError(inference)
    lazy = (nn.UninitializedParameter, nn.UninitializedBuffer)
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if isinstance(value, lazy) or value.is_meta:
            raise UserError(f"{name}: has no values yet: run the network once, or load weights")
    for name, parameter in model.named_parameters():
        if parameter.is_inference():
            raise UserError(inference)
        if not parameter.isfinite().all():
            raise UserError(f"{name}: has values that are not finite, which no score can rank")
    for name, buffer in model.named_buffers():
        if buffer.layout == torch.strided and buffer.is_floating_point() and buffer.isnan().any():
            raise UserError(f"{name}: has values that are NaN")  # infinite ones are masks
    return copied(model)


@contextmanager
def _uncalled(model: nn.Module) -> Iterator[None]:
    """Refuse (UserError) that a copy's forward pass calls modules of the original, which would change."""

    def refuse(*_: object) -> None:
        what = "a function that it holds calls its modules, and would go on to call them from a copy"
        raise UserError(f"{type(model).__name__}: {what}: make the function a method")

    with ExitStack() as hooks:
        for module in model.modules():
            if not isinstance(module, torch.jit.ScriptModule):  # which takes no hooks, and is copied whole
                hooks.enter_context(module.register_forward_pre_hook(refuse))
        yield
