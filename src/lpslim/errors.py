"""The exceptions that are shown without a traceback: a mistake of the user's, and what went wrong."""

from __future__ import annotations


class UserError(Exception):
    """Bad input, exit code 2: the message names the key, the value and what it may be."""


class RunError(Exception):
    """A run that could not go on, exit code 1: what happened, what was kept, what to do."""


class DivergenceError(Exception):
    """A loss that is no number any more.

    stage: where. epoch, step: when, both from 1; the step counts inside the epoch. loss: in words. curve:
    the measurements of the epochs before.
    """

    def __init__(self, stage: str, epoch: int, step: int, loss: float, curve: list[dict[str, float]]) -> None:
        super().__init__(f"{stage}: the loss is {loss} in epoch {epoch}, step {step}")
        self.stage, self.epoch, self.step, self.loss, self.curve = stage, epoch, step, str(loss), curve
