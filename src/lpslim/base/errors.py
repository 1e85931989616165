"""Exceptions that the command line shows without a traceback, each with its exit code."""

from collections.abc import Mapping, Sequence

SHOWN = 5  # names in a message


class UserError(Exception):
    """Bad input, exit code 2: the message names the key, the value as typed and what it may be."""


class RunError(Exception):
    """A run that could not go on, exit code 1: what happened, what was kept, what to do."""


class DivergenceError(Exception):
    """A training loss that is not finite.

    Attributes: ``stage``; ``epoch`` and ``step``, both from 1, the step inside its epoch; ``loss`` as text;
    ``curve``, the rows of the epochs before.
    """

    def __init__(self, stage: str, epoch: int, step: int, loss: float, curve: list[dict[str, float]]) -> None:
        super().__init__(f"{stage}: the loss is {loss} in epoch {epoch}, step {step}")
        self.stage, self.epoch, self.step, self.loss, self.curve = stage, epoch, step, str(loss), curve


def listed(names: Sequence[str]) -> str:
    """Return names for a message, the first five and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"


def reasons(left: Mapping[str, str]) -> str:
    """Return layers that are left alone for a message, each with its reason on a line of its own."""
    return "".join(f"\n  {layer}: {reason}" for layer, reason in left.items())
