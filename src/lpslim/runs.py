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
    """
    data = lookup.find("data", config.dataset.source).load(config.dataset, Path(config.work_dir) / "data")
    steps = plan(config, data)
    key = steps["finetune"].key
    recorded = records.path_of(Path(config.results_dir), config.name, key)
    if recorded.exists() and not config.dry_run:
        print(report.summary(records.read(recorded), config.selection))
        print(f"record: {recorded} (measured before; results_dir=<folder> measures it anew)")
        return recorded
    check_target(config, data)
    foreseen = outlook(config, data, steps)
    state = "recorded" if recorded.exists() else "no record yet"
    print(f"{config.name}, seed {config.seed}: {state}", *lines(foreseen), f"  {total(foreseen)}", sep="\n")
    if config.dry_run:
        return foreseen
    work = Path(config.work_dir)
    folder = store.make_folder(work / "runs" / config.name / key[:SHORT], work)
    store.refuse_links(folder)
    store.write_json(folder / "config.json", asdict(config))
    logs = str(folder / "tensorboard")
    with _log_file(folder / "run.log"), logging_redirect_tqdm(), SummaryWriter(logs) as writer:
        infos = Pipeline(config, data, steps, writer).run()
        record = _record(config, differs, data, steps, infos)
        report.fill_folder(folder, record, steps["finetune"].folder)
    path = records.write(Path(config.results_dir), record)
    family = lookup.find("models", config.model.family)
    if hasattr(family, "accompany"):
        family.accompany(folder / "pruned", config.dataset.tokenizer)
    print(report.summary(record, config.selection))
    print(f"run folder: {folder}\nrecord: {path}")
    return path


def _record(
    config: Config,
    differs: dict[str, list[Any]],
    data: Data,
    steps: dict[str, Step],
    infos: dict[str, dict[str, Any]],
) -> records.Record:
    keys = {name: step.key for name, step in steps.items()}
    device = str(make_accelerator(config.trainer).device)
    return report.make_record(config, asdict(config), differs, data, keys, infos, device)


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
