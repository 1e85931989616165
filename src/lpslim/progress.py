"""How far a training has come, and the look at its losses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lpslim.errors import DivergenceError

Curve = list[dict[str, float]]


@dataclass
class Progress:
    """How far a training has come: epochs done, steps done of the current one, and what they gave.

    losses: of the steps that were not looked at yet. spent: seconds of the current epoch.
    """

    epoch: int = 0
    step: int = 0
    curve: Curve = field(default_factory=list)
    loss_sum: Tensor | float = 0.0
    answers: list[Tensor] = field(default_factory=list)
    truths: list[Tensor] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    spent: float = 0.0

    def add(self, loss: Tensor, answers: Tensor, truths: Tensor) -> None:
        """Note what one step gave."""
        self.step += 1
        self.loss_sum = self.loss_sum + loss
        self.losses.append(loss)
        self.answers.append(answers)
        self.truths.append(truths)

    def check(self, stage: str) -> None:
        """Look at the losses of the last steps; waits for the accelerator.

        Raises:
            DivergenceError: one is no number, or infinite; the first such step is named.
        """
        for before, loss in enumerate(torch.stack(self.losses).tolist() if self.losses else []):
            if not math.isfinite(loss):
                step = self.step - len(self.losses) + before + 1
                raise DivergenceError(stage, self.epoch + 1, step, loss, self.curve)
        self.losses.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return the fields, each list of small tensors as one."""
        joined = {name: [torch.cat(parts)] for name, parts in self._parts().items() if parts}
        return {**vars(self), **joined, "losses": list(self.losses)}

    def _parts(self) -> dict[str, list[Tensor]]:
        return {"answers": self.answers, "truths": self.truths}

    def seen(self) -> dict[str, list[Tensor]]:
        """Return this process's answers and truths of the current epoch, on the CPU."""
        return {name: [torch.cat(parts).cpu()] if parts else [] for name, parts in self._parts().items()}

    def see(self, *parts: Mapping[str, list[Tensor]]) -> None:
        """Take such answers and truths, of one process or more, in place of its own."""
        for name, own in self._parts().items():
            device = own[0].device if own else torch.device("cpu")
            own[:] = [tensor.to(device) for part in parts for tensor in part[name]]

    def finish_epoch(self, row: dict[str, float]) -> None:
        """Note an epoch's measurements, and begin the next."""
        self.curve.append(row)
        self.epoch, self.step, self.loss_sum, self.spent = self.epoch + 1, 0, 0.0, 0.0
        self.answers, self.truths = [], []


def restored(state: dict[str, Any], device: torch.device) -> Progress:
    """Return the progress of a :meth:`Progress.state_dict`, its tensors on ``device``."""

    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [moved(each) for each in value]
        return value.to(device) if isinstance(value, Tensor) else value

    return Progress(**{name: moved(value) for name, value in state.items()})
