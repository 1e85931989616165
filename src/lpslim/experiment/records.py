"""Records: one JSON file per finished run, with all that a table or a figure needs. Imports no torch.

A record is written once, to ``<results>/records/<experiment>/<key>.json``, and never changed.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from lpslim.base import files
from lpslim.base.errors import DivergenceError, UserError
from lpslim.experiment.config import NAME, PROTOCOLS, Config

if TYPE_CHECKING:
    from lpslim.data.splits import Data
    from lpslim.experiment.keys import PlannedStage

# Version of each stage's code, raised when a change alters its results; layer_budget is a score as well
VERSIONS = {"baseline": 1, "sparsify": 1, "layer_budget": 1, "score": 1, "prune": 1, "finetune": 1}
SETTINGS = {  # of a configuration that tables look at
    "p", "M", "rho", "lamb", "target_flops", "target_params", "ratio", "protected", "retrain", "granularity",
    "model", "dataset", "regularizer", "criterion", "baseline", "finetune", "trainer",
}  # fmt: skip
RULE = "multiply-adds of convolution and linear layers; all parameters"  # of counting the cost
NETWORK = "weights.safetensors"  # of a stage's folder: models.storage.WEIGHTS, which imports torch
LARGEST = 1_000_000  # bytes of a file; a record of 400 epochs and 100 layers has 50,000
DIGITS = 4  # decimals of a curve's values: finer than any data set can tell
Stage = Annotated[str, Meta(pattern=rf"\A({'|'.join(VERSIONS)})\Z")]
Protocol = Annotated[str, Meta(pattern=rf"\A({'|'.join(PROTOCOLS)})\Z")]
Name = Annotated[str, Meta(pattern=rf"\A{NAME}\Z")]
Key = Annotated[str, Meta(pattern=r"\A[0-9a-f]{16}\Z")]
Sha256 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Positive = Annotated[int, Meta(ge=1, le=2**63 - 1)]
Seconds = Annotated[float, Meta(ge=0)]
Percent = Annotated[float, Meta(ge=-100, le=100)]  # a correlation may be negative
Drop = Annotated[float, Meta(le=100)]  # a network may also grow
Accuracy = dict[Protocol, Percent]  # of every protocol; of val if there is a validation split


class Size(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Cost of one network: multiply-adds for a sample, and parameters."""

    macs: Count
    params: Count


class Samples(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Data set: its name and source, fingerprint of its content, metric, and number of samples."""

    name: str
    source: str
    fingerprint: str
    metric: str
    train: Count
    val: Count
    test: Count
    mean: list[float] | None = None  # of the normalisation that published weights brought; None: its own
    std: list[float] | None = None


class Cost(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Cost before and after pruning, counted by ``rule``, drops in percent; None without a pruning."""

    rule: str
    dense: Size | None = None
    pruned: Size | None = None
    flops_drop: Drop | None = None
    params_drop: Drop | None = None


class Curve(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Training of one stage, a value per epoch; accuracies in percent, of an empty validation split none."""

    train_loss: list[float]
    val_accuracy: list[Percent]
    test_accuracy: list[Percent]


class Divergence(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Place of a training loss that is not finite: epoch and step from 1, the loss as text."""

    stage: Stage
    epoch: Positive
    step: Positive
    loss: str


class Record(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One run: what was asked, on what data, and what came out. Percentages are 0 to 100."""

    schema: Literal[2]
    experiment: Name  # <table>/<row>, or adhoc
    method: str  # its name in tables
    kind: str
    seed: Count
    key: Key  # of the last stage
    stages: dict[Stage, Key]
    groups: dict[Stage, Key]  # keys without the seed: equal of the runs of one table cell
    versions: dict[Stage, Positive]  # of the stages' code
    weights: dict[Stage, Sha256]  # of the stages' networks
    differs: dict[str, list[Any]]  # from the experiment file, if results do: key -> [the file's, the run's]
    config: dict[str, Any]
    data: Samples
    cost: Cost
    accuracy: dict[Stage, Accuracy]  # on the test split
    channels: dict[str, tuple[Positive, Positive]]  # pruned layer -> (kept, of)
    convergence: list[dict[str, float]]  # a row per outer iteration
    curves: dict[Stage, Curve]
    seconds: dict[Stage, Seconds]  # wall time where computed
    environment: dict[str, str | int | bool | None]
    diverged: Divergence | None = None  # if a loss was not finite: the rest was measured before

    def __post_init__(self) -> None:
        """Refuse (ValueError) a record that lacks what tables need."""
        stages, model, ended = self.stages.keys(), self.config.get("model"), not self.diverged
        measured = {"baseline", "prune", "finetune"} <= self.accuracy.keys()
        protocols = {*PROTOCOLS} if self.data.val else {*PROTOCOLS} - {"val"}
        fitting = all(accuracy.keys() == protocols for accuracy in self.accuracy.values())
        for fault, is_so in {
            "stages.finetune: is not the record's key": self.stages.get("finetune") != self.key,
            "groups, versions: not of all stages": not stages == self.groups.keys() == self.versions.keys(),
            "config.model.name: missing": not isinstance(model, dict)
            or not isinstance(model.get("name"), str),
            "config: lacks settings that tables need": not self.config.keys() >= SETTINGS,
            "cost: needs dense, pruned and both drops": ended and None in msgspec.structs.astuple(self.cost),
            "accuracy: needs baseline, prune and finetune": ended and not measured,
            "accuracy: must hold last, paper, and val with a validation split": not fitting,
        }.items():
            if is_so:
                raise ValueError(fault)

    @property
    def epochs(self) -> Mapping[str, int]:
        """Stage -> epochs that were run, of the stages whose training the last network has gone through."""
        apart = {"sparsify"} if self.config.get("retrain") == "rewind" else set()
        return {stage: len(curve.train_loss) for stage, curve in self.curves.items() if stage not in apart}


DECODER = msgspec.json.Decoder(Record)


def path_of(results: Path, experiment: str, key: str) -> Path:
    """Return where the record of a run is, or would be."""
    return results / "records" / experiment / f"{key}.json"


def write(results: Path, record: Record) -> Path:
    """Write a record, unless there is one, and return its path (ValueError: a value is NaN or infinite).

    A lock must be held: what was left half-written there is removed.
    """
    path = path_of(results, record.experiment, record.key)
    files.clear_scratch(path)
    if not path.exists():
        files.write_json(path, msgspec.to_builtins(record))
    return path


def read(path: Path) -> Record:
    """Read one record, which may come from anybody (UserError: ``<path>: not a record: <where and why>``)."""
    try:
        if not path.is_file() or path.stat().st_size > LARGEST:  # a pipe would never end
            raise ValueError(f"not a file of at most {LARGEST} bytes")
        return DECODER.decode(path.read_bytes())
    except (OSError, ValueError, RecursionError) as problem:
        raise UserError(f"{path}: not a record: {problem}") from problem


def paths(results: Path) -> list[Path]:
    """Return the paths of all records below ``results``, in order: no hidden files, no folders."""
    found = (results / "records").rglob("*.json")
    return sorted(path for path in found if not path.is_dir() and not path.name.startswith("."))


def read_all(results: Path) -> list[Record]:
    """Read every record below ``results``, in the order of their paths (UserError: a file is none)."""
    gc.disable()  # no record is garbage, and the collector would go through all of them again and again
    try:
        return [read(path) for path in paths(results)]
    finally:
        gc.enable()


def make_record(
    config: Config, data: Data, steps: Mapping[str, PlannedStage], infos: Mapping[str, Mapping[str, Any]],
    diverged: DivergenceError | None, **fields: Any,
) -> Record:  # fmt: skip
    """Return the record of a run; ``infos``: stage -> what it says of itself, of the finished ones.

    fields: ``method``, ``kind``, ``differs`` and ``environment``, as in the record.
    """
    curves = {stage: info["curve"] for stage, info in infos.items() if "curve" in info}
    if diverged:
        curves[diverged.stage] = diverged.curve
        fields["diverged"] = {name: getattr(diverged, name) for name in Divergence.__struct_fields__}
    samples = {split: len(getattr(data, split)) for split in ("train", "val", "test")}
    content = {
        "schema": 2, "experiment": config.name, "seed": config.seed, "key": steps["finetune"].key,
        "stages": {stage: step.key for stage, step in steps.items()},
        "groups": {stage: step.group for stage, step in steps.items()},
        "versions": {stage: VERSIONS[stage] for stage in steps},
        "weights": {s: info["files"][NETWORK] for s, info in infos.items() if NETWORK in info["files"]},
        "config": public(config),
        "data": {"name": data.name, "source": data.source, "fingerprint": data.fingerprint,
                 "metric": data.task.metric, **samples,
                 "mean": data.reading.get("mean"), "std": data.reading.get("std")},
        "cost": {"rule": RULE, **infos.get("prune", {}).get("cost", {})},
        "accuracy": {stage: info["accuracy"] for stage, info in infos.items() if "accuracy" in info},
        "channels": infos.get("prune", {}).get("channels", {}),
        "convergence": infos.get("sparsify", {}).get("convergence", []),
        "curves": {s: {name: [round(row[name], DIGITS) for row in rows if name in row]
                       for name in Curve.__struct_fields__} for s, rows in curves.items()},
        "seconds": {stage: round(info["seconds"], 1) for stage, info in infos.items()},
    }  # fmt: skip
    return msgspec.convert({**content, **fields}, Record)


def public(config: Config) -> dict[str, Any]:
    """Return a configuration without places on this machine; of files and folders the name stays."""
    settings = asdict(config)
    del settings["results_dir"], settings["work_dir"]
    del settings["dataset"]["root"], settings["model"]["weights_dir"]
    if config.model.weights:
        settings["model"]["weights"] = Path(config.model.weights).name
    settings["model"]["name"] = files.called(config.model.name)
    settings["dataset"]["tokenizer"] = files.called(config.dataset.tokenizer)
    return settings
