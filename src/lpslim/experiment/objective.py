"""What a search may optimise: numbers from a run's record, none of them seen by the test set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from lpslim.base.errors import UserError
from lpslim.experiment import records
from lpslim.experiment.records import Record

MEASURES: dict[str, Callable[[Record], float]] = {
    "val_accuracy": lambda record: record.curves["finetune"]["val_accuracy"][-1],
    "params": lambda record: record.cost["pruned"]["params"],
    "macs": lambda record: record.cost["pruned"]["macs"],
}


def check(names: Sequence[str]) -> None:
    """Refuse a name that is no measure.

    Raises:
        UserError: with those that there are.
    """
    for name in names:
        if name not in MEASURES:
            raise UserError(f"hydra.callbacks.summary.objective={name}: must be among {', '.join(MEASURES)}")


def values(recorded: Path | None, names: Sequence[str]) -> tuple[float, ...]:
    """Return the named measures of a record, in order.

    Raises:
        UserError: there is no record, as after a dry run.
    """
    if recorded is None:
        raise UserError("dry_run=true: a search needs what its runs measure")
    record = records.read(recorded)
    return tuple(float(MEASURES[name](record)) for name in names)
