"""What a run will do before it does it, and what it did: stages found and computed, epochs, time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lpslim import ranks
from lpslim.config import Config
from lpslim.plan import Step
from lpslim.speed import measured
from lpslim.splits import Data


@dataclass(frozen=True)
class Stage:
    """A stage of a run: ``done`` before it, and so found, or to be computed, in ``seconds``.

    Of one to come ``seconds`` is an estimate, 0 where nothing is trained; of one that is found it is 0.
    """

    name: str
    key: str
    done: bool
    epochs: int
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """What became of a run: its record, and its stages as they were found or computed.

    A dry run has no record, and its stages are those foreseen.
    """

    stages: list[Stage]
    record: Path | None = None


def outlook(config: Config, data: Data, steps: dict[str, Step]) -> list[Stage]:
    """Return the stages of a run with the epochs and the time that those to do will take.

    The pruned network is taken to be faster by the multiply-adds that it loses, and as fast as the
    dense one where a ratio or a number of parameters says how many: the estimate is then too high.
    """
    left = 1 - (config.target_flops or 0.0) if config.structure == "channels" else 1.0
    foreseen = []
    for step in steps.values():
        epochs = step.epochs
        if step.name == "finetune" and config.retrain == "scratch_b":
            epochs = round(epochs / left)
        seconds = 0.0
        if epochs and not step.done:
            share = left if step.name == "finetune" else 1.0
            seconds = epochs * share * _dense_epoch(config, data)
        foreseen.append(Stage(step.name, step.key, step.done, epochs, seconds))
    return foreseen


def total(foreseen: Sequence[Stage]) -> str:
    """Return a line on what is left to do, each stage counted once however many runs share it."""
    distinct = {stage.key: stage for stage in foreseen}.values()
    ahead = [stage for stage in distinct if not stage.done]
    time_left = f", about {duration(sum(stage.seconds for stage in ahead))}" if _sum(ahead) else ""
    found = len(distinct) - len(ahead)
    return f"{found} stages found, {len(ahead)} to do: {_with_and_without(ahead, foreseen)}{time_left}"


def account(stages: Sequence[Stage]) -> str:
    """Return a line on what runs have computed, by the stages of all of them."""
    made = [stage for stage in stages if not stage.done]
    took = f", {duration(sum(stage.seconds for stage in made))}" if made else ""
    return f"{len(made)} stages computed: {_with_and_without(made, stages)}{took}"


def _with_and_without(made: Sequence[Stage], asked: Sequence[Stage]) -> str:
    """Return the epochs of what is computed, and those of every run by itself where that is more."""
    alone = f" ({_sum(asked)} if nothing were shared)" if _sum(asked) > _sum(made) else ""
    return f"{_epochs(_sum(made))}{alone}"


def _sum(stages: Iterable[Stage]) -> int:
    return sum(stage.epochs for stage in stages)


def _epochs(count: int) -> str:
    return f"{count} epoch" if count == 1 else f"{count} epochs"


def lines(foreseen: Sequence[Stage]) -> list[str]:
    """Return one line per stage."""
    rows = []
    for stage in foreseen:
        length = _epochs(stage.epochs) if stage.epochs else ""
        rows.append(
            f"  {stage.name:<9} {stage.key}  {'found' if stage.done else 'to do':<6} {length}".rstrip()
        )
    return rows


def duration(seconds: float) -> str:
    """Return a time as a person says it: ``40 s``, ``12 min``, ``7.5 h``, ``3.2 days``."""
    for unit, size in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}" if unit == "min" else f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _dense_epoch(config: Config, data: Data) -> float:
    """Return the seconds of one epoch of the dense network, training and evaluation."""
    # a forward is a third of a step
    samples = len(data.train) + (len(data.val) + len(data.test)) / 3
    return samples / measured(config, data).per_second / ranks.share().world
