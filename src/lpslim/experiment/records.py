"""Records: one small JSON per finished run, all that a table or figure needs.

A record is written once, to ``<results>/records/<experiment>/<key>.json``. Everything that
``reproduce/`` prints as measured comes from here. ``python -m lpslim.experiment.records verify`` checks them.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from lpslim import strict
from lpslim.base import files
from lpslim.base.errors import UserError
from lpslim.experiment import schema
from lpslim.experiment.config import NAMED, Config, is_name

SCHEMA = schema.VERSION
KEY = re.compile("[0-9a-f]{16}")
LARGEST = 1_000_000  # bytes of a file; a record of 400 epochs and 100 layers has 50,000
# Where and how a run is done, not what it measures
PLACES = frozenset(
    ("name", "seed", "selection", "results_dir", "work_dir", "dry_run", "dataset.root", "dataset.source",
     "dataset.download", "dataset.workers", "dataset.store_gb", "trainer.device", "trainer.threads",
     "trainer.checkpoint_minutes")
)  # fmt: skip
# Settings that came after the first records were written, and what their absence means
LATER: dict[str, Any] = {"structure": "channels", "round_to": 1, "retrain": "finetune", "model.weights": None,
         "criterion.across": "minmax", "criterion.widths": None, "protected": [],
         "dataset.max_length": 128, "dataset.tokenizer": "", "dataset.store_gb": 10.0,
         "trainer.checkpoint_minutes": 10.0, "trainer.cuda_graphs": False,
         **{f"{recipe}.{key}": value for recipe in ("baseline", "regularizer.train", "finetune")
            for key, value in {"optimizer": "sgd", "clip_norm": None}.items()}}  # fmt: skip
OPEN = ("trainer.channels_last", "trainer.compile", "trainer.cuda_graphs")  # where null: what is fastest
SOURCES = (":/src", ":/conf", ":/run.py")  # git: from the top, wherever it is asked
PACKAGES = ("lpslim", "torch", "torchvision", "torch-pruning", "accelerate", "transformers", "tokenizers")


@dataclass(frozen=True)
class Record:
    """One run: what was asked, on what, and what came out. Percentages are 0 to 100.

    experiment: ``<table>/<row>``, or ``adhoc``. key: of the last stage.
    differs: config keys in which the run departs from that experiment file (the seed aside):
        ``{key: [the file's value, the run's value]}``; such a run is not that row.
    config: the composed config. stages: name -> key.
    data: ``name``, ``source``, ``fingerprint``, ``metric`` (absent: accuracy) and the number of
        ``train``, ``val``, ``test`` samples.
    cost: ``rule``, ``dense`` and ``pruned`` (each ``macs``, ``params``), ``flops_drop``, ``params_drop``.
    accuracy: stage -> protocol (``last``, ``val``, ``paper``; see evaluation.summarise) -> test
        accuracy, or the data's metric; the stage ``prune`` (before fine-tuning) has ``last`` alone.
    channels: pruned layer -> [kept, of]. convergence: a row per outer ADMM iteration
        (``iteration``, ``epoch``, ``primal``, ``dual``, ``sparsity``, ``capped``); may be empty.
    curves: stage -> column (``train_loss``, ``val_accuracy``, ``test_accuracy``) -> value per epoch.
    seconds: stage -> wall time where it was computed. environment: versions, device, git commit.
    versions: stage -> version of the code that computed it (lpslim.experiment.versions); absent: 1 each.
    weights: stage -> SHA-256 of the network that it left; absent in the first records.
    diverged: ``stage``, ``epoch`` and ``step`` (from 1) at which the loss was no number any more, and
        ``loss``; empty if all went well. Such a record has what was measured until then: ``accuracy`` lacks
        that stage and the later ones, ``cost`` may hold its ``rule`` alone.
    """

    experiment: str
    key: str
    seed: int
    differs: dict[str, list[Any]]
    config: dict[str, Any]
    stages: dict[str, str]
    data: dict[str, Any]
    cost: dict[str, Any]
    accuracy: dict[str, dict[str, float]]
    channels: dict[str, list[int]]
    convergence: list[dict[str, float]]
    curves: dict[str, dict[str, list[float]]]
    seconds: dict[str, float]
    environment: dict[str, Any]
    versions: dict[str, int] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)
    diverged: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """Every setting by its dotted key, also those that came after the record; for the seed, None."""
        return {**LATER, **dict(flat(self.config)), "seed": None}

    @cached_property
    def asked(self) -> str:
        """The settings as JSON, the same for runs over seeds: under it, what follows can be remembered."""
        return json.dumps(self.settings)

    @cached_property
    def epochs(self) -> Mapping[str, int]:
        """Stage -> how many epochs were run, of those that train."""
        return {stage: len(curve["train_loss"]) for stage, curve in self.curves.items()}

    if not TYPE_CHECKING:  # which shall go on to refuse what is no field

        def __getattr__(self, name: str) -> Any:
            """Take a field that the index left for later (see lpslim.index)."""
            if name not in Record.__dataclass_fields__ or "later" not in vars(self):
                raise AttributeError(f"a record has no {name}")
            vars(self)[name] = value = vars(self)["later"](name)
            return value


def path_of(results: Path, experiment: str, key: str) -> Path:
    """Return where the record of a run is, or would be."""
    return results / "records" / experiment / f"{key}.json"


def write(results: Path, record: Record) -> Path:
    """Write a record and return its path.

    Raises:
        FileExistsError: there is one already; records are never changed.
        UserError: its folder is a link to elsewhere.
        UserError: experiment or key cannot be part of a path.
    """
    if not is_name(record.experiment) or not KEY.fullmatch(record.key):
        raise UserError(f"name={record.experiment}: must be {NAMED}, and the key {record.key!r} hexadecimal")
    path = path_of(results, record.experiment, record.key)
    store.make_folder(path.parent, results)
    if path.exists():
        raise FileExistsError(f"{path} exists; records are never changed")
    store.write_json(path, asdict(record))
    return path


def read(path: Path) -> Record:
    """Read one record, which may come from anybody: every value is checked.

    Raises:
        UserError: ``<path>: not a record of schema 1: <where and why>``.
    """
    what = f"a record of schema {SCHEMA}"
    content = strict.read(path, schema.SHAPE, what, LARGEST)
    lacking = sorted(_always() - {key for key, _ in flat(content["config"])})
    if problem := f"config.{lacking[0]}: missing" if lacking else schema.fault(content):
        raise UserError(f"{path}: not {what}: {problem}")
    return Record(**content)


@cache
def _always() -> frozenset[str]:
    """Return the settings that every record has."""
    return frozenset(key for key, _ in flat(asdict(Config()))) - LATER.keys()


def read_all(results: Path) -> list[Record]:
    """Read every record below ``results``, in the order of their paths."""
    return [read(path) for path in sorted((results / "records").rglob("*.json"))]


def flat(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every (dotted key, value) of a nested configuration."""
    for key, inner in config.items():
        if isinstance(inner, dict):
            yield from flat(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner


def differences(filed: Mapping[str, Any], config: Config) -> dict[str, list[Any]]:
    """Return ``{key: [file's value, run's value]}``, the places aside.

    ``filed``: the settings of the run's experiment file, flat; empty where there is none, and then nothing
    differs. What the file leaves open differs from nothing.
    """
    as_run = dict(flat(asdict(config)))
    return {
        key: [value, as_run[key]]
        for key, value in filed.items()
        if key not in PLACES and value != as_run[key] and not (value is None and key in OPEN)
    }


def frame(records: Iterable[Record]) -> pd.DataFrame:
    """Return one row per run: its identity, settings, drops and accuracies (flat columns).

    ``diverged`` is the stage at which a run did, empty for all others; what such a run lacks is NaN.
    """
    return pd.DataFrame([_row(each) for each in records])


def _row(record: Record) -> dict[str, Any]:
    config = record.config
    row = {
        "experiment": record.experiment,
        "key": record.key,
        "seed": record.seed,
        "as_configured": not record.differs,
        "model": config["model"]["name"],
        "dataset": record.data["name"],
        "fingerprint": record.data["fingerprint"],
        "penalty": config["regularizer"]["penalty"],
        "criterion": config["criterion"]["name"],
        **{key: record.settings[key] for key in ("structure", "retrain")},
        **{knob: config[knob] for knob in ("p", "M", "rho", "lamb", "ratio", "target_flops")},
        "diverged": record.diverged.get("stage", ""),
        "flops_drop": record.cost.get("flops_drop"),
        "params_drop": record.cost.get("params_drop"),
        "pruned_accuracy": record.accuracy.get("prune", {}).get("last"),
    }
    for stage in ("baseline", "finetune"):
        for protocol, value in record.accuracy.get(stage, {}).items():
            row[f"{stage}_{protocol}"] = value
    return row


def environment(device: str) -> dict[str, Any]:
    """Return the versions, machine and source revision that a record states."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "machine": platform.machine(),
        "device": device,
        **{package: version(package) for package in PACKAGES},
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--", *SOURCES)),
    }


def _git(*arguments: str) -> str | None:
    here = Path(__file__).parent
    try:
        done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None  # installed from a package: there is no repository to name
    return done.stdout.strip()


if __name__ == "__main__":
    from lpslim import verify  # it reads records: this module, when imported, must not need it

    sys.exit(verify.main())
