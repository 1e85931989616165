"""Trackers of a run, those of Accelerate: TensorBoard, Weights & Biases and MLflow."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, MLflowTracker, TensorBoardTracker, WandBTracker

from lpslim.base import files
from lpslim.base.errors import UserError
from lpslim.experiment.config import flat

PROJECT = "lpslim"
log = logging.getLogger(__name__)


class WandB(WandBTracker):  # type: ignore[misc]
    """Weights & Biases. It drops values whose step does not grow: the stages' steps are values."""

    def start(self) -> None:
        """Start the run, with the step as the axis of all charts."""
        super().start()
        self.run.define_metric("*", step_metric="step")

    def log(self, values: dict[str, Any], step: int | None = None, **options: Any) -> None:
        """Log the values of one step."""
        super().log({**values, "step": step}, **options)


MAKE: dict[str, Callable[[str, Path], GeneralTracker]] = {  # from a run's title and folder
    "tensorboard": lambda title, folder: TensorBoardTracker("tensorboard", folder),
    "wandb": lambda title, folder: WandB(os.environ.get("WANDB_PROJECT", PROJECT), name=title, dir=folder),
    "mlflow": lambda title, folder: MLflowTracker(PROJECT, run_name=title),
}
KEEP: dict[str, Callable[[Any, Path], object]] = {  # the file of the run's record
    "tensorboard": lambda tracker, path: tracker.writer.add_text("record", f"```json\n{path.read_text()}```"),
    "wandb": lambda tracker, path: tracker.run.save(path, base_path=path.parent, policy="now"),
    "mlflow": MLflowTracker.log_artifact,
}


class Trackers:
    """The started trackers of one run. One that fails is named in the log and left out from then on.

    UserError if a tracker does not start: no account, no server.
    """

    def __init__(self, names: Sequence[str], title: str, folder: Path, settings: Mapping[str, Any]) -> None:
        plain = bool | int | float | str | None
        values = {key: value if isinstance(value, plain) else str(value) for key, value in settings.items()}
        self.started: dict[str, GeneralTracker] = {}
        for name in dict.fromkeys(names):
            try:
                tracker = MAKE[name](title, folder)
                tracker.start()
                self.started[name] = tracker
                tracker.store_init_configuration(values)
            except Exception as problem:
                self.finish()
                raise UserError(f"trainer.trackers={name}: does not start: {problem}") from problem

    def log(self, group: str, row: Mapping[str, float], by: str) -> None:
        """Log a row of values as ``group/name``, at the step that its value ``by`` names."""
        values = {f"{group}/{name}": value for name, value in row.items() if name != by}
        self._each(lambda name, tracker: tracker.log(values, step=int(row[by])))

    def keep(self, record: Path) -> None:
        """Log the results in the run's record, and keep its file."""
        content = files.read_json(record)
        results = flat({part: content[part] for part in ("accuracy", "cost", "seconds")})
        numbers = {key: value for key, value in results if isinstance(value, int | float)}
        self.log("record", {"step": 0, **numbers}, by="step")
        self._each(lambda name, tracker: KEEP[name](tracker, record))

    def finish(self) -> None:
        """End the run for all trackers."""
        self._each(lambda name, tracker: tracker.finish())

    def _each(self, action: Callable[[str, GeneralTracker], object]) -> None:
        for name, tracker in [*self.started.items()]:
            try:
                action(name, tracker)
            except Exception as problem:
                del self.started[name]
                log.warning("%s fails, and tracks this run no longer: %s", name, problem)
