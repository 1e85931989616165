"""Callbacks of the training loop: the base class, regularisers, and the keeper of pruned weights at zero."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lpslim.base.errors import UserError, reasons
from lpslim.base.modules import Example, copied, map_tensors
from lpslim.pruning import budget, check, graph, groups
from lpslim.pruning.budget import Budget, Candidates
from lpslim.pruning.prune import Pruned
from lpslim.pruning.selection import Kept
from lpslim.pruning.units import regularised_weights
from lpslim.sparsity.channels import GroupADMM
from lpslim.sparsity.penalties.lp import Lp
from lpslim.training.schedule import iterations_done

CUT_BELOW = 0.01  # of ||W||: the units that go may hold so much when they are cut
ZERO_BELOW = 1e-6  # of ||W||: units that hold less are set to zero
log = logging.getLogger(__name__)


class Callback:
    """Hooks into the training loop; a subclass overrides those it needs. Usable in a loop of one's own."""

    def begin(self) -> None:
        """Called once before the first step, when the model is on its device."""

    def after_backward(self) -> None:
        """Called when the gradients of a step are complete, before the optimiser uses them."""

    def after_step(self, step: int, steps_per_epoch: int) -> None:
        """Called after each step of the optimiser; ``step`` counts from 1 through all epochs."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold: tensors and numbers."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint; called after ``begin``."""


@dataclass(eq=False)
class Regularizer(Callback):
    """Callback that adds a penalty, base of the plug-ins.

    convergence: a row per outer iteration, with its ``iteration`` from 1 and the ``epoch`` where it ended.
    """

    convergence: list[dict[str, float]] = field(default_factory=list, init=False)

    def sparse(self) -> dict[str, Tensor]:
        """Return the sparse copy Z of the weights, by parameter name, on the CPU; empty if there is none."""
        return {}

    def kept(self) -> Kept | None:
        """Return the units that stay (layer -> indices), chosen here in place of a score and a target."""
        return None


class MaskKeeper(Callback):
    """Keeps pruned weights at zero: without a gradient, SGD and AdamW leave a zero where it is."""

    def __init__(self, model: nn.Module) -> None:
        self.weights = list(regularised_weights(model).values())

    def begin(self) -> None:
        """Take the masks from the weights, on the device where they now are."""
        self.masks = [weight.detach() != 0 for weight in self.weights]

    @torch.no_grad()
    def after_backward(self) -> None:
        """Drop the gradient of every masked weight."""
        for weight, mask in zip(self.weights, self.masks, strict=True):
            assert weight.grad is not None
            weight.grad.mul_(mask)


class ChannelADMM(Regularizer):
    """ADMM on whole channels under a budget: those that go are drawn to zero while the network trains.

    Of the outer iterations a share ``ramp`` tightens the budget to its target, along a cubic (Zhu and Gupta
    2017, arXiv:1710.01878). When an iteration has then not changed which units go, or half of the others are
    over, the choice is frozen: the units that stay are free, and rho, for those that go, grows by ``growth``
    each iteration until they hold less than 1 % of the network's norm (in scaled variables) and can be cut.

    In a training loop of one's own::

        admm = lpslim.ChannelADMM(model, example, target_flops=0.5, epochs=4)
        admm.begin()
        for step, (images, labels) in ...:                # from 1, through all epochs
            ...                                           # backward, optimizer.step()
            admm.after_step(step, steps_per_epoch)
        model = admm.cut().model                          # train on, with an optimiser of its parameters

    Args:
        model: a network in which nothing has the same weights twice, on the device where it trains.
        example: one input, such as (1, C, H, W), as for :func:`lpslim.prune`.
        target_flops, target_params, ratio: one of them, the budget, as for :func:`lpslim.prune`.
        epochs, updates_per_epoch: how long it pulls, and outer iterations in an epoch.
        p, M: the penalty is |s|^(1/p) of a group's size s with its slope capped at M; p=0: the projection,
            which shrinks nothing that stays, and ended ahead on CIFAR-10 (docs/method.md).
        rho: weight of the pull: the steps of an outer iteration shrink the gap of W and V to exp(-rho) of it.
        floor, protected, round_to: as for :func:`lpslim.prune`.
        candidates: units that can go, in place of those that are found by tracing.
        measure: the network's accuracy, called in every outer iteration as it is, and as if cut now.

    Raises:
        UserError: not one budget, a setting out of range, nothing that can be cut, or a target out of reach.
    """

    def __init__(
        self, model: nn.Module, example: Example, *, target_flops: float | None = None,
        target_params: float | None = None, ratio: float | None = None, epochs: int,
        updates_per_epoch: int = 4, p: float = 8.0, M: float | None = 0.7, rho: float = 0.8,
        ramp: float = 0.4, growth: float = 3.0, floor: float = 0.1, protected: Sequence[str] = (),
        round_to: int = 1, candidates: Candidates | None = None, measure: Callable[[], float] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        settings = {
            "epochs": (epochs, epochs >= 1, "1 or more"),
            "updates_per_epoch": (updates_per_epoch, updates_per_epoch >= 1, "1 or more"),
            "p": (p, p == 0 or p >= 1, "0, or 1 or more"),
            "M": (M, M is None or M > 0, "above 0, or None for no cap"),
            "rho": (rho, rho > 0, "above 0"),
            "ramp": (ramp, 0 <= ramp <= 1, "in [0, 1]"),
            "growth": (growth, growth >= 1, "1 or more"),
            "floor": (floor, 0 <= floor < 1, "in [0, 1)"),
            "round_to": (round_to, round_to >= 1, "1 or more"),
        }
        for name, (value, fits, allowed) in settings.items():
            if not fits:  # as NaN never does
                raise UserError(f"{name}={value}: must be {allowed}")
        self.model, self.example, self.epochs, self.measure = model, example, epochs, measure
        given = {"target_flops": target_flops, "target_params": target_params, "ratio": ratio}
        self.key, self.value = budget.only(given, counts=True)
        self.budget = Budget(**{self.key: self.value}, round_to=round_to)
        self.left: dict[str, str] = {}
        if candidates is None:
            units, self.left, *_ = check.survey(model, example, protected)
            if not units:
                raise UserError(f"no layer can lose channels:{reasons(self.left) or ' none was found'}")
            candidates = budget.candidates(model, example, units, adjust=floor, floor=floor)
        self.every = candidates
        self.candidates, self.slices, alone = groups.find(model, example, candidates)
        self.left |= alone
        self.candidates.check(self.budget)
        self.iterations, self.per_epoch = epochs * updates_per_epoch, updates_per_epoch
        self.ramp, self.growth, self.rho = max(1, round(ramp * self.iterations)), growth, rho
        self.weight = Lp(p, M).weight if p else None
        self.share, self.frozen = 0.0, False

    def begin(self) -> None:
        """Start from Z = W and U = 0, on the device where the weights now are."""
        sizes = [unit.size for unit in self.candidates.units]
        layers = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        self.admm = GroupADMM(dict(self.model.named_parameters()), self.slices, layers, self.weight)
        for layer, reason in self.left.items():
            log.warning("%s: left alone: %s", layer, reason)

    @property
    def settled(self) -> bool:
        """Whether the units that go are chosen for good, and all but zero: they can be cut."""
        return self.frozen and self.convergence[-1]["gap"] < CUT_BELOW

    def after_step(self, step: int, steps_per_epoch: int) -> None:
        """Pull; do the Z- and U-step when an outer iteration ends with this step."""
        self.admm.step()
        done = iterations_done(step, steps_per_epoch, self.per_epoch)
        if iterations_done(step - 1, steps_per_epoch, self.per_epoch) < done <= self.iterations:
            self._update(done, step / steps_per_epoch, steps_per_epoch)

    def _update(self, done: int, epoch: float, steps_per_epoch: int) -> None:
        before, shrinkage = self.admm.stays, 1.0
        part, rho = 1 - (1 - min(1.0, done / self.ramp)) ** 3, self.rho
        if not self.frozen:
            shrinkage = self.admm.update(partial(self._choose, part))
            same = done > self.ramp and torch.equal(before, self.admm.stays)
            self.frozen = same or done >= max(self.ramp, (self.ramp + self.iterations) // 2)
        elif not self.settled:
            self.rho *= self.growth
        elif self.convergence[-1]["gap"] < ZERO_BELOW:
            self.admm.silence()  # else they go on to numbers so small that a processor is slow with them
        self.share = -math.expm1(-self.rho * self.per_epoch / steps_per_epoch)
        self.admm.pull(self.share, self.frozen)
        row = {"iteration": done, "epoch": epoch, "part": part, "rho": rho, "gap": self.admm.gap(),
               "units": int(self.admm.stays.sum()), "shrinkage": shrinkage}  # fmt: skip
        if self.measure:
            row["accuracy"] = self.measure()
            with self.admm.silenced():
                row["accuracy_if_cut"] = self.measure()
        self.convergence.append(row)
        log.info(", ".join(f"{name} {value:.4g}" for name, value in row.items()))

    def _choose(self, part: float, priority: Tensor) -> Tensor:
        """Return the units that stay, by the highest priority, where the budget is removed to a part."""
        units, device = self.candidates.units, priority.device
        scores = torch.split(priority.cpu(), [unit.size for unit in units])
        try:
            kept = self.candidates.select(scores, self.budget, part)
        except UserError as problem:  # where one unit weighs much, these scores may only come near the target
            log.warning("%s", problem)
            kept = self.candidates.select(scores, self.budget, 1 - 1e-9)
        stays = [torch.zeros(unit.size, dtype=torch.bool) for unit in units]
        for unit, chosen in zip(units, stays, strict=True):
            chosen[kept[unit.layer]] = True
        return torch.cat(stays).to(device)

    def kept(self) -> Kept:
        """Return the units that stay, of layers left alone all."""
        if not self.settled:
            log.warning("the units that go are not all but zero: the cut will be felt")
        stays = torch.split(self.admm.stays.cpu(), [unit.size for unit in self.candidates.units])
        pairs = zip(self.candidates.units, stays, strict=True)
        chosen = {unit.layer: stay.nonzero().flatten().tolist() for unit, stay in pairs}
        return {unit.layer: chosen.get(unit.layer, list(range(unit.size))) for unit in self.every.units}

    def cut(self) -> Pruned:
        """Return the network without the units that go; the original is left as it is, with the pull on."""
        smaller, kept, units = copied(self.model), self.kept(), tuple(self.every.units)
        device = next(smaller.parameters()).device  # which the network may have been moved to
        example = map_tensors(self.example, lambda tensor: tensor.to(device))
        graph.prune(smaller, example, kept)
        cost, widths = self.every.cost, [len(kept[unit.layer]) for unit in units]
        shares = {"target_flops": cost.flops_drop(widths), "target_params": cost.params_drop(widths),
                  "ratio": 1 - sum(widths) / sum(unit.size for unit in units)}  # fmt: skip
        return Pruned(
            model=smaller, units=units, kept=kept, dense=cost.dense, pruned=cost(widths), example=example,
            budget=f"{self.key}={self.value:g}", reached=shares[self.key], left_alone=self.left,
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Return Z, V, the choice, the weight of the pull and the convergence so far."""
        own = {name: getattr(self, name) for name in ("rho", "share", "frozen", "convergence")}
        return {"admm": self.admm.state_dict(), **own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.admm.load_state_dict(state["admm"])
        for name in state.keys() - {"admm"}:
            setattr(self, name, state[name])
        self.admm.pull(self.share, self.frozen)
