"""Callbacks of the training loop: the base class, regularisers, and the keeper of pruned weights at zero."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lpslim.pruning.units import regularised_weights


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
