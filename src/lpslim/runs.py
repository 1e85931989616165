"""One run from its checked configuration to its record."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from tqdm.contrib.logging import logging_redirect_tqdm

from lpslim import lookup, records, report, store
from lpslim.config import Config
from lpslim.errors import DivergenceError, RunError
from lpslim.failures import explained
from lpslim.outlook import Stage, lines, outlook, total
from lpslim.plan import Step, plan
from lpslim.splits import Data
from lpslim.stages import Pipeline
from lpslim.survey import check_target
from lpslim.training import make_accelerator

log = logging.getLogger(__name__)
SHORT = 8  # characters of a key in a folder's name


def execute(config: Config, differs: dict[str, list[Any]]) -> Path | list[Stage]:
    """Do what ``config`` (already checked) asks; return the record's path, or a dry run's outlook.

    Finished stages are found again by their keys. A run whose record exists is not repeated.
    ``differs`` is what sets it apart from the experiment file that it names, for the record.

    Raises:
        UserError: the data are not there, or the target cannot be met.
        RunError: it could not go on, or diverged.
    """
    data = lookup.find("data", config.dataset.source).load(config.dataset, Path(config.work_dir) / "data")
    steps = plan(config, data)
    key = steps["finetune"].key
    recorded = records.path_of(Path(config.results_dir), config.name, key)
    if recorded.exists() and not config.dry_run:
        return _told(records.read(recorded), recorded, config)
    check_target(config, data)
    foreseen = outlook(config, data, steps)
    state = "recorded" if recorded.exists() else "no record yet"
    print(f"{config.name}, seed {config.seed}: {state}", *lines(foreseen), f"  {total(foreseen)}", sep="\n")
    if config.dry_run:
        return foreseen
    for place in ("results_dir", "work_dir"):
        store.check_writable(Path(getattr(config, place)), place)
    work = Path(config.work_dir)
    folder = store.make_folder(work / "runs" / config.name / key[:SHORT], work)
    store.refuse_links(folder)
    store.write_json(folder / "config.json", asdict(config))
    with explained(steps.values()), _log_file(folder / "run.log"):
        record = _computed(config, differs, data, steps, folder)
        with store.locked(steps["finetune"].lock):  # another process may be here with the same run
            store.clear_scratch(recorded)
            if not recorded.exists():
                records.write(Path(config.results_dir), record)
    return _told(record, recorded, config, folder)


def _computed(
    config: Config, differs: dict[str, list[Any]], data: Data, steps: dict[str, Step], folder: Path
) -> records.Record:
    """Find or make every stage, and fill the run's folder; a run that diverged has a record too."""
    infos: dict[str, dict[str, Any]] = {}
    diverged = None
    with logging_redirect_tqdm(), SummaryWriter(str(folder / "tensorboard")) as writer:
        try:
            infos.update(Pipeline(config, data, steps, writer).run())
        except DivergenceError as problem:
            diverged = problem
    keys = {name: step.key for name, step in steps.items()}
    device = str(make_accelerator(config.trainer).device)
    record = report.make_record(config, asdict(config), differs, data, keys, infos, device, diverged)
    if not diverged:
        report.fill_folder(folder, record, steps["finetune"].folder)
        family = lookup.find("models", config.model.family)
        if hasattr(family, "accompany"):
            family.accompany(folder / "pruned", config.dataset.tokenizer)
    return record


def _told(record: records.Record, path: Path, config: Config, folder: Path | None = None) -> Path:
    """Print what a run gave, computed in ``folder`` or found; return its record's path.

    Raises:
        RunError: it diverged.
    """
    again = "measured before; results_dir=<folder> measures it anew"
    told = f"run folder: {folder}\nrecord: {path}" if folder else f"record: {path} ({again})"
    summary = report.summary(record, config.selection)
    if record.diverged:
        raise RunError(f"{summary}\n{told}\na lower learning rate may help")
    print(summary, told, sep="\n")
    return path


@contextmanager
def _log_file(path: Path) -> Iterator[None]:
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    root = logging.getLogger("lpslim")
    root.setLevel(logging.INFO)
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()
