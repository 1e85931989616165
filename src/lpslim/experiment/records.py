"""Records: one JSON file per finished run, with all that a table or a figure needs. Imports no torch.

A record is written once, to ``<results>/records/<experiment>/<key>.json``, and never changed.
"""

from __future__ import annotations

import gc
import platform
import stat
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta, Struct

from lpslim.base import files
from lpslim.base.errors import DivergenceError, UserError
from lpslim.experiment.config import Config, flat

if TYPE_CHECKING:
    from lpslim.data.splits import Data
    from lpslim.experiment.keys import Step

# Version of each stage's code: raised when a change alters its results. layer_budget is a score like any other.
VERSIONS = {"baseline": 1, "sparsify": 1, "layer_budget": 1, "score": 1, "prune": 1, "finetune": 1}
RULE = "multiply-adds of convolution and linear layers; all parameters"  # of counting the cost
NETWORK = "weights.safetensors"  # of a stage's folder: models.storage.WEIGHTS, which imports torch
LARGEST = 1_000_000  # bytes of a file; a record of 400 epochs and 100 layers has 50,000
DIGITS = 4  # decimals of a curve's values: finer than any data set can tell
SAME = 1e-6  # percent; a drop is computed from whole numbers
PRIVATE = ("results_dir", "work_dir", "dataset.root")  # settings that only name places on this machine
SOURCES = (":/src", ":/conf", ":/run.py")  # for git: from the top, wherever it is asked
PACKAGES = ("lpslim", "torch", "torchvision", "torch-pruning", "accelerate", "transformers", "tokenizers")

PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"  # cannot climb out of a folder
Name = Annotated[str, Meta(pattern=rf"\A{PART}(/{PART})*\Z", max_length=200)]
Key = Annotated[str, Meta(pattern=r"\A[0-9a-f]{16}\Z")]
Sha256 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Positive = Annotated[int, Meta(ge=1, le=2**63 - 1)]
Percent = Annotated[float, Meta(ge=-100, le=100)]  # a correlation may be negative
Drop = Annotated[float, Meta(le=100)]  # a network may also grow
Stage = Literal["baseline", "sparsify", "layer_budget", "score", "prune", "finetune"]
Protocol = Literal["last", "val", "paper"]


class Entry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A JSON object whose fields are all known."""


class Size(Entry):
    """Cost of one network: multiply-adds of a sample, and parameters."""

    macs: Count
    params: Count


class Samples(Entry):
    """Data set: its name and source, fingerprint of its content, metric, and number of samples."""

    name: str
    source: str
    fingerprint: str
    metric: str
    train: Count
    val: Count
    test: Count


class Cost(Entry):
    """Cost before and after pruning, counted by ``rule``; drops in percent. Only ``rule`` before the pruning."""

    rule: str
    dense: Size | None = None
    pruned: Size | None = None
    flops_drop: Drop | None = None
    params_drop: Drop | None = None

    @property
    def complete(self) -> bool:
        """Return whether the network was pruned."""
        return None not in (self.dense, self.pruned, self.flops_drop, self.params_drop)


class Curve(Entry):
    """One stage's training, a value per epoch; accuracies in percent."""

    train_loss: list[float]
    val_accuracy: list[Percent]
    test_accuracy: list[Percent]


class Divergence(Entry):
    """Where the training loss was no finite number: epoch and step from 1, the loss as text."""

    stage: Stage
    epoch: Positive
    step: Positive
    loss: str


class Record(Entry):
    """One run: what was asked, on what data, and what came out. Percentages are 0 to 100.

    experiment: ``<table>/<row>``, or ``adhoc``. method, kind: the method's name in a table, and its class.
    key: of the last stage. stages, groups: stage -> its key, and that key without the seed; runs of equal
    ``groups["finetune"]`` are the seeds of one cell. versions: stage -> version of its code. weights: stage ->
    SHA-256 of the network that it left.
    differs: empty for a run as its experiment file says (or without one); else key -> [the file's, the run's].
    config: the composed configuration, without places of the machine.
    accuracy: stage -> protocol -> the data's metric on the test split (training.evaluation.summarise).
    channels: pruned layer -> (kept, of). convergence: a row per outer ADMM iteration; may be empty.
    seconds: stage -> wall time where it was computed. environment: versions, device, git commit.
    diverged: where a loss was not finite; such a record has what was measured until then.
    """

    schema: Literal[2]
    experiment: Name
    method: str
    kind: str
    seed: Count
    key: Key
    stages: dict[Stage, Key]
    groups: dict[Stage, Key]
    versions: dict[Stage, Positive]
    weights: dict[Stage, Sha256]
    differs: dict[str, list[Any]]
    config: dict[str, Any]
    data: Samples
    cost: Cost
    accuracy: dict[Stage, dict[Protocol, Percent]]
    channels: dict[str, tuple[Positive, Positive]]
    convergence: list[dict[str, float]]
    curves: dict[Stage, Curve]
    seconds: dict[Stage, Annotated[float, Meta(ge=0)]]
    environment: dict[str, str | int | bool | None]
    diverged: Divergence | None = None

    def __post_init__(self) -> None:
        if fault := next(_faults(self), None):
            raise ValueError(fault)

    @property
    def group(self) -> str:
        """Key of the last stage without the seed: equal in the runs of one table cell."""
        return self.groups["finetune"]

    @property
    def settings(self) -> Mapping[str, Any]:
        """Every setting by its dotted key; one that came after the record has its default."""
        return {**dict(flat(asdict(Config()))), **dict(flat(self.config))}

    @property
    def epochs(self) -> Mapping[str, int]:
        """Stage -> epochs that were run, of the stages that train."""
        return {stage: len(curve.train_loss) for stage, curve in self.curves.items()}


DECODER = msgspec.json.Decoder(Record)


def _faults(record: Record) -> Iterator[str]:
    """Yield where the fields of a record contradict each other."""
    if record.stages.get("finetune") != record.key:
        yield "stages.finetune: is not the record's key"
    for field in ("groups", "versions"):
        if getattr(record, field).keys() != record.stages.keys():
            yield f"{field}: needs the stages {', '.join(record.stages)}"
    if not isinstance(record.config.get("model"), dict) or "name" not in record.config["model"]:
        yield "config.model.name: missing"
    if any(len(values) != len(get_args(Protocol)) for values in record.accuracy.values()):
        yield f"accuracy: needs {', '.join(get_args(Protocol))} of a stage"
    if layer := next((layer for layer, (kept, of) in record.channels.items() if kept > of), None):
        yield f"channels.{layer}: keeps more than there are"
    if any(len(c.train_loss) != len(c.test_accuracy) for c in record.curves.values()):
        yield "curves: columns of different lengths"
    yield from _cost_faults(record.cost, optional=record.diverged is not None)
    if record.diverged:
        if record.diverged.stage in record.accuracy or record.diverged.stage not in record.stages:
            yield "diverged.stage: is not a stage without an accuracy"
    elif lacking := [stage for stage in ("baseline", "prune", "finetune") if stage not in record.accuracy]:
        yield f"accuracy.{lacking[0]}: missing"


def _cost_faults(cost: Cost, optional: bool) -> Iterator[str]:
    if not cost.complete:
        if not optional:
            yield "cost: needs dense, pruned, flops_drop and params_drop"
        return
    assert cost.dense and cost.pruned
    for name, dense, pruned, drop in (
        ("flops_drop", cost.dense.macs, cost.pruned.macs, cost.flops_drop),
        ("params_drop", cost.dense.params, cost.pruned.params, cost.params_drop),
    ):
        if dense == 0 or abs(100 * (1 - pruned / dense) - (drop or 0.0)) > SAME:
            yield f"cost.{name}: does not follow from dense and pruned"


def path_of(results: Path, experiment: str, key: str) -> Path:
    """Return where the record of a run is, or would be."""
    return results / "records" / experiment / f"{key}.json"


def write(results: Path, record: Record) -> Path:
    """Write a record and return its path.

    Raises:
        ValueError: a value is not what a record may hold, such as NaN.
        FileExistsError: there is one already; records are never changed.
    """
    content = msgspec.to_builtins(record)
    try:
        msgspec.convert(content, Record)
    except msgspec.ValidationError as problem:
        raise ValueError(f"not a record: {problem}") from problem
    path = path_of(results, record.experiment, record.key)
    if path.exists():
        raise FileExistsError(f"{path} exists; records are never changed")
    files.write_json(path, content)
    return path


def read(path: Path) -> Record:
    """Read one record, which may come from anybody: every value is checked.

    Raises:
        UserError: ``<path>: not a record: <where and why>``.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would never end
            raise ValueError("no file")
        if status.st_size > LARGEST:
            raise ValueError(f"larger than {LARGEST} bytes")
        return DECODER.decode(path.read_bytes())
    except (OSError, ValueError, RecursionError) as problem:
        raise UserError(f"{path}: not a record: {problem}") from problem


def read_all(results: Path) -> list[Record]:
    """Read every record below ``results``, in the order of their paths.

    Raises:
        UserError: a file is not a record.
    """
    collects = gc.isenabled()
    gc.disable()  # none of what is read is garbage, and the collector would look through it again and again
    try:
        return [read(path) for path in paths(results)]
    finally:
        if collects:
            gc.enable()


def paths(results: Path) -> list[Path]:
    """Return the files of all records below ``results``, sorted."""
    return sorted((results / "records").rglob("*.json"))


def make_record(
    config: Config,
    data: Data,
    steps: Mapping[str, Step],
    infos: Mapping[str, dict[str, Any]],
    *,
    method: tuple[str, str],
    differs: dict[str, list[Any]],
    environment: dict[str, Any],
    diverged: DivergenceError | None = None,
) -> Record:
    """Return the record of a run.

    Args:
        config, data, steps: the run. infos: stage -> what it says of itself, of those that were finished.
        method: the method's name and kind. differs, environment: as in the record.
        diverged: the loss that was not finite, if there was one.
    """
    pruned = infos.get("prune", {})
    curves = {stage: info["curve"] for stage, info in infos.items() if "curve" in info}
    where = None
    if diverged:
        curves[diverged.stage] = diverged.curve
        where = Divergence(
            stage=diverged.stage,  # type: ignore[arg-type]
            epoch=diverged.epoch,
            step=diverged.step,
            loss=diverged.loss,
        )
    content = {
        "schema": 2,
        "experiment": config.name,
        "method": method[0],
        "kind": method[1],
        "seed": config.seed,
        "key": steps["finetune"].key,
        "stages": {name: step.key for name, step in steps.items()},
        "groups": {name: step.group for name, step in steps.items()},
        "versions": {name: VERSIONS[name] for name in steps},
        "weights": {name: info["files"][NETWORK] for name, info in infos.items() if NETWORK in info["files"]},
        "differs": {key: [portable(value) for value in pair] for key, pair in differs.items()},
        "config": _public(asdict(config)),
        "data": {
            **{key: getattr(data, key) for key in ("name", "source", "fingerprint")},
            "metric": data.task.metric,
            **{split: len(getattr(data, split)) for split in ("train", "val", "test")},
        },
        "cost": {"rule": RULE, **pruned.get("cost", {})},
        "accuracy": {stage: info["accuracy"] for stage, info in infos.items() if "accuracy" in info},
        "channels": pruned.get("channels", {}),
        "convergence": infos.get("sparsify", {}).get("convergence", []),
        "curves": {stage: _columns(curve) for stage, curve in curves.items()},
        "seconds": {stage: round(info["seconds"], 1) for stage, info in infos.items()},
        "environment": environment,
        "diverged": where,
    }
    return msgspec.convert(content, Record)


def _columns(curve: list[dict[str, float]]) -> dict[str, list[float]]:
    return {name: [round(row[name], DIGITS) for row in curve] for name in Curve.__struct_fields__}


def _public(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    return {
        key: _public(value, f"{prefix}{key}.") if isinstance(value, dict) else portable(value)
        for key, value in settings.items()
        if prefix + key not in PRIVATE
    }


def portable(value: Any) -> Any:
    """Return a setting as a record states it: of an absolute path, the file's name alone."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def environment(device: str, processes: int = 1) -> dict[str, Any]:
    """Return the versions, machine and source revision that a record states."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "machine": platform.machine(),
        "device": device,
        "processes": processes,
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
