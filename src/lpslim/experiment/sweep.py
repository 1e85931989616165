"""Sweeps: notes on the jobs, whichever launcher does them, their summary, and the objectives of a search."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from lpslim.base import files
from lpslim.base.errors import RunError, UserError
from lpslim.experiment import records
from lpslim.experiment.records import Record, Size

LOST = "killed or stopped before its end; the same command goes on"


MEASURES_KEY = "hydra.callbacks.objective.measures"
NO_SPLIT = f"{MEASURES_KEY}=val_accuracy: needs a dataset.val_fraction above 0"


def val_accuracy(record: Record) -> float:
    """Return the fine-tuned network's accuracy on the validation split in percent (UserError: has none)."""
    if not (curve := record.curves["finetune"].val_accuracy):
        raise UserError(NO_SPLIT)
    return curve[-1]


def pruned(record: Record) -> Size:
    """Return the size of the pruned network of a run that ended."""
    assert record.cost.pruned is not None
    return record.cost.pruned


MEASURES: Mapping[str, Callable[[Record], float]] = {
    "val_accuracy": val_accuracy,
    "params": lambda record: pruned(record).params,
    "macs": lambda record: pruned(record).macs,
}


@contextmanager
def job(folder: Path, number: int, words: Sequence[str]) -> Iterator[None]:
    """Note that a job began, and its end; a failure is noted and not raised, so that the other jobs go on."""
    note = {"words": list(words), "state": "LOST", "problem": LOST, "code": 1, "trace": ""}
    files.write_json(folder / f"job{number}.json", note)  # it stays so if the process dies
    try:
        yield
        note |= {"state": "done", "problem": "", "code": 0}
    except Exception as problem:
        foreseen = isinstance(problem, UserError | RunError)
        text = str(problem) if foreseen else f"{type(problem).__name__}: {problem}"
        note |= {"state": "FAILED", "problem": text, "code": 2 if isinstance(problem, UserError) else 1}
        note |= {"trace": "".join(traceback.format_exception(problem))}
    files.write_json(folder / f"job{number}.json", note)


def notes(folder: Path) -> list[dict[str, Any]]:
    """Return the notes on the jobs that began, in order."""
    paths = sorted(folder.glob("job*.json"), key=lambda path: int(path.stem.removeprefix("job")))
    return [files.read_json(path) for path in paths]


def summary(jobs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines on what became of the jobs, named by the words that not all share; none for none."""
    states = [note["state"] for note in jobs]
    lost = f", {states.count('LOST')} lost" if "LOST" in states else ""
    lines = [f"sweep: {len(jobs)} jobs, {states.count('FAILED')} failed{lost}"] if jobs else []
    for note in jobs:
        own = [word for word in note["words"] if not all(word in other["words"] for other in jobs)]
        reason = f": {note['problem'].splitlines()[0]}" if note["problem"] else ""
        lines.append(f"  {note['state']:<7}{' '.join(own or note['words'])}{reason}")
    return lines


def check(composed: DictConfig) -> None:
    """Refuse (UserError) a search by an accuracy that its runs will not have."""
    objective = composed.hydra.callbacks.get("objective") or {}
    if "val_accuracy" in objective.get("measures", ()) and composed.dataset.val_fraction == 0:
        raise UserError(NO_SPLIT)


class Objective(Callback):
    """Hydra callback that gives a sweeper which searches the ``measures`` of a job's record, in order."""

    def __init__(self, measures: Sequence[str]) -> None:
        self.measures = list(measures)
        for name in [name for name in measures or [""] if name not in MEASURES]:
            raise UserError(f"{MEASURES_KEY}={name}: must be one of {', '.join(MEASURES)}")

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Replace the path of the job's record by its measures, one as a number; a failed job has none."""
        if job_return.return_value is not None:
            record = records.read(job_return.return_value)
            values = tuple(float(MEASURES[name](record)) for name in self.measures)
            job_return.return_value = values if len(values) > 1 else values[0]
