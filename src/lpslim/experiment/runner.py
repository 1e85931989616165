"""One run from its checked configuration to its record."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from lpslim.failures import explained
from lpslim.outlook import Outcome, Stage, account, lines, outlook, total
from lpslim.settle import settled
from torch.utils.tensorboard import SummaryWriter
from tqdm.contrib.logging import logging_redirect_tqdm

from lpslim.base import files, registry
from lpslim.base.errors import DivergenceError, RunError, UserError
from lpslim.data.splits import Data
from lpslim.experiment import records, report
from lpslim.experiment.config import Config
from lpslim.experiment.keys import Step, plan, recipes
from lpslim.experiment.stages import Pipeline
from lpslim.pruning.budget import check_target
from lpslim.training.loop import distributed
from lpslim.training.runtime import check_batches, make_accelerator

log = logging.getLogger(__name__)
SHORT = 8  # characters of a key in a folder's name


def execute(config: Config, filed: Mapping[str, Any]) -> Outcome:
    """Do what ``config`` (already checked) asks.

    Finished stages are found again by their keys. A run whose record exists is not repeated.
    ``filed``: the settings of the experiment file that it names, flat, for the record; empty for none.

    Raises:
        UserError: the data are not there, or the target cannot be met.
        RunError: it could not go on, or diverged.
    """
    if ranks.launched():
        make_accelerator(config.trainer)  # the processes find each other
    with ranks.one_fate(but=(UserError,)):
        data = ranks.in_turn(partial(_loaded, config))
        config = settled(config, data)  # before the keys, which follow from it
        steps = ranks.in_turn(lambda: plan(config, data))
        key = steps["finetune"].key
        if len(set(ranks.gathered([key]))) > 1:
            raise UserError("the processes of this run have different settings, or find different data")
        check_batches(recipes(config), data)
        recorded = records.path_of(Path(config.results_dir), config.name, key)
        known = ranks.decided(
            lambda: records.read(recorded) if recorded.exists() and not config.dry_run else None
        )
        foreseen = [] if known else ranks.decided(lambda: _foreseen(config, data, steps, recorded.exists()))
        folder = Path(config.work_dir) / "runs" / config.name / key[:SHORT]
        if not known and not config.dry_run:
            ranks.decided(lambda: _prepare(config, folder))
    if known:
        _tell(known, config, f"record: {recorded} (measured before; results_dir=<folder> measures it anew)")
        return Outcome(_recalled(known), recorded)
    if config.dry_run:
        return Outcome(foreseen)
    stages: list[Stage] = []
    with ranks.one_fate(), explained(steps.values()), _run_log(folder):
        diverged, infos = _computed(config, data, steps, folder, stages)
        record = ranks.decided(
            lambda: _recorded(config, filed, data, steps, infos, diverged, folder, recorded)
        )
    _tell(record, config, f"{account(stages)}\nrun folder: {folder}\nrecord: {recorded}")
    return Outcome(stages, recorded)


def _loaded(config: Config) -> Data:
    data: Data = lookup.find("data", config.dataset.source).load(
        config.dataset, Path(config.work_dir) / "data"
    )
    return data


def _foreseen(config: Config, data: Data, steps: dict[str, Step], recorded: bool) -> list[Stage]:
    """Print what will be done, if it can be done at all, and return it."""
    check_target(config, data)
    foreseen = outlook(config, data, steps)
    state = "recorded" if recorded else "no record yet"
    print(f"{config.name}, seed {config.seed}: {state}", *lines(foreseen), f"  {total(foreseen)}", sep="\n")
    return foreseen


def _prepare(config: Config, folder: Path) -> None:
    """Make the run's folder, and put the configuration into it."""
    for place in ("results_dir", "work_dir"):
        store.check_writable(Path(getattr(config, place)), place)
    store.make_folder(folder, Path(config.work_dir))
    store.refuse_links(folder)
    store.write_json(folder / "config.json", asdict(config))


def _recalled(record: records.Record) -> list[Stage]:
    """Return the stages of a run that was recorded before."""
    lengths = {stage: len(curve["train_loss"]) for stage, curve in record.curves.items()}
    return [Stage(name, key, True, lengths.get(name, 0), 0.0) for name, key in record.stages.items()]


def _computed(
    config: Config, data: Data, steps: dict[str, Step], folder: Path, stages: list[Stage]
) -> tuple[DivergenceError | None, dict[str, dict[str, Any]]]:
    """Find or make every stage; return where the run diverged, if it did, and what the stages say.

    Those that ended are added to ``stages``.
    """
    infos: dict[str, dict[str, Any]] = {}
    charts = SummaryWriter(str(folder / "tensorboard")) if ranks.main() else nullcontext()
    with logging_redirect_tqdm(), charts as writer:
        try:
            for name, found, info in Pipeline(config, data, steps, writer).run():
                infos[name] = info
                seconds, epochs = 0.0 if found else info["seconds"], len(info.get("curve", []))
                stages.append(Stage(name, steps[name].key, found, epochs, seconds))
        except DivergenceError as problem:
            return problem, infos
    return None, infos


def _recorded(
    config: Config,
    filed: Mapping[str, Any],
    data: Data,
    steps: dict[str, Step],
    infos: dict[str, dict[str, Any]],
    diverged: DivergenceError | None,
    folder: Path,
    path: Path,
) -> records.Record:
    """Fill the run's folder and write its record; a run that diverged has one too."""
    keys = {name: step.key for name, step in steps.items()}
    device = make_accelerator(config.trainer).device.type
    differs = records.differences(filed, config)
    record = report.make_record(config, asdict(config), differs, data, keys, infos, device, diverged)
    if not diverged:
        report.fill_folder(folder, record, steps["finetune"].folder)
        family = lookup.find("models", config.model.family)
        if hasattr(family, "accompany"):
            family.accompany(folder / "pruned", config.dataset.tokenizer)
    with store.locked(steps["finetune"].lock):  # another run may be here with the same settings
        store.clear_scratch(path)
        if not path.exists():
            records.write(Path(config.results_dir), record)
    return record


def _tell(record: records.Record, config: Config, more: str) -> None:
    """Print what a run gave.

    Raises:
        RunError: it diverged.
    """
    summary = report.summary(record, config.selection)
    if record.diverged:
        raise RunError(f"{summary}\n{more}\na lower learning rate may help")
    print(summary, more, sep="\n")


@contextmanager
def _run_log(folder: Path) -> Iterator[None]:
    if not ranks.main():
        yield
        return
    handler = logging.FileHandler(folder / "run.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    root = logging.getLogger("lpslim")
    root.setLevel(logging.INFO)
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()
