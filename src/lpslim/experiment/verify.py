"""Whether records and stored stages still are what was written: ``python -m lpslim.experiment.records verify``.

A record's numbers must agree with each other, and with the stages that are still there, whose files are
hashed again. With ``--data`` the data are read again too, and their fingerprints compared.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from lpslim.base import files
from lpslim.base.errors import UserError
from lpslim.base.hashing import canonical, stage_key
from lpslim.experiment import records
from lpslim.experiment.records import Record

ROUNDING = 0.6e-4  # curves are stored with four digits, accuracies with all
SAME = 1e-6  # points: a drop is computed from whole numbers
SIGNED = ("matthews", "spearman")
RENAMED = {"cifar10": "cifar"}  # modules of lpslim.data that the first records know under another name
BROKEN = (AttributeError, IndexError, KeyError, TypeError, ValueError, ZeroDivisionError)


@dataclass
class Findings:
    """What was looked at, and what is wrong; stages and data sets that records share count once."""

    problems: list[str] = field(default_factory=list)
    records: int = 0
    stages: Counter[str] = field(default_factory=Counter)
    data: Counter[str] = field(default_factory=Counter)

    def text(self) -> str:
        """Return the summary line."""
        parts = [f"{self.records} records", f"{self.stages['hashed']} stages re-hashed"]
        parts += [f"{self.stages['older']} older than hashes"] if self.stages["older"] else []
        parts += [f"{self.stages['absent']} absent"]
        if self.data:
            parts += [f"{self.data['read']} data sets read again", f"{self.data['absent']} absent"]
        return ", ".join([*parts, f"{len(self.problems)} problems"])


def verify(results: Path, work: Path, data_root: Path | None = None) -> Findings:
    """Check every record below ``results``, its stages below ``work``, and its data where a root is given.

    A record that cannot be read is a problem like any other, and the rest are checked all the same.
    """
    findings = Findings()
    found: dict[Path, Record] = {}
    for path in sorted((results / "records").rglob("*.json")):
        findings.records += 1
        try:
            found[path] = records.read(path)
        except (UserError, OSError) as problem:
            findings.problems.append(str(problem))
    for path, record in found.items():
        for check in (_place(record, path, results), _accuracies(record), _costs(record)):
            findings.problems += [f"{path}: {fault}" for fault in _until_broken(check)]
    _check_stages(found, work, findings)
    if data_root is not None:
        _check_data(found, data_root, findings)
    return findings


def _until_broken(faults: Iterator[str]) -> Iterator[str]:
    """Yield faults; what is not shaped as it should be is one, and ends this check alone."""
    try:
        yield from faults
    except BROKEN as problem:
        yield f"cannot be checked ({type(problem).__name__}: {problem})"


def _place(record: Record, path: Path, results: Path) -> Iterator[str]:
    expected = records.path_of(results, record.experiment, record.key)
    if path.name != expected.name:
        yield f"the file's name is not its key, {record.key}"
    if path.parent != expected.parent:
        yield f"does not lie in the folder of its experiment, {record.experiment}"
    if (last := list(record.stages.values())[-1]) != record.key:
        yield f"its key is {record.key}, but its last stage has {last}"
    if (name := record.config["name"]) != record.experiment:
        yield f"its experiment is {record.experiment}, but its configuration is called {name}"
    if (seed := record.config["seed"]) != record.seed:
        yield f"its seed is {record.seed}, but its configuration has {seed}"


def _accuracies(record: Record) -> Iterator[str]:
    metric = record.data.get("metric", "accuracy")
    low = -100 if metric in SIGNED else 0
    stages = [stage for stage in record.stages if stage not in ("widths", "score")]
    if stage := record.diverged.get("stage"):
        reached = stages[: stages.index(stage)]
        yield from (f"accuracy.{s}: diverged at {stage}" for s in record.accuracy if s not in reached)
        stages = reached
    yield from (f"accuracy.{each}: is missing" for each in stages if each not in record.accuracy)
    for stage, protocols in record.accuracy.items():
        for protocol, value in protocols.items():
            if not low <= value <= 100:
                yield f"accuracy.{stage}.{protocol}={value}: is not between {low} and 100"
        if stage == "prune":
            continue
        untrained = {protocol: [protocols["last"]] for protocol in protocols}  # no epoch: measured once
        allowed = _from_curve(record.curves.get(stage, {}), metric) or untrained
        for protocol, values in allowed.items():
            if all(abs(protocols[protocol] - each) > ROUNDING for each in values):
                yield f"accuracy.{stage}.{protocol}={protocols[protocol]}: its curve says {values[0]}"


def _from_curve(curve: dict[str, list[float]], metric: str) -> dict[str, list[float]]:
    """Return protocol -> what it may be (see lpslim.training.evaluation.summarise); empty for no epoch."""
    if not curve or not curve["test_accuracy"]:
        return {}
    test, validation = curve["test_accuracy"], curve["val_accuracy"]
    best = [test[i] for i, value in enumerate(validation) if value == max(validation)]
    if metric == "accuracy":  # of other metrics, two that differ may be stored alike
        best = best[:1]
    return {"last": test[-1:], "val": best, "paper": [max(test)]}


def _costs(record: Record) -> Iterator[str]:
    if record.diverged and "dense" not in record.cost:
        return
    dense, pruned = record.cost["dense"], record.cost["pruned"]
    for key, drop in (("macs", "flops_drop"), ("params", "params_drop")):
        expected, stated = 100 * (1 - pruned[key] / dense[key]), record.cost[drop]
        if not abs(stated - expected) <= SAME:
            yield f"cost.{drop}={stated}: {pruned[key]} of {dense[key]} {key} is a drop of {expected}"
    for layer, (kept, of) in record.channels.items():
        if not 0 < kept <= of:
            yield f"channels.{layer}: keeps {kept} of {of}"


def _check_stages(found: dict[Path, Record], work: Path, findings: Findings) -> None:
    seen: set[Path] = set()
    for path, record in found.items():
        for stage, key in record.stages.items():
            folder = work / "stages" / ("score" if stage == "widths" else stage) / key
            if folder not in seen:
                seen.add(folder)
                findings.stages[_state(folder)] += 1
                fault = store.damage(folder) if folder.is_dir() else ""
                findings.problems += [f"{folder}: {fault}"] if fault else []
            if folder.is_dir():
                agreeing = _until_broken(_agreeing(record, stage, folder))
                findings.problems += [f"{path}: {stage} {key}: {each}" for each in agreeing]


def _state(folder: Path) -> str:
    if not folder.is_dir():
        return "absent"
    try:
        return "hashed" if "files" in store.read_json(folder / "stage.json") else "older"
    except (OSError, ValueError, TypeError):
        return "hashed"  # and found to be damaged


def _agreeing(record: Record, stage: str, folder: Path) -> Iterator[str]:
    """Yield where a record says other things than the stored stage."""
    weights = folder / "weights.safetensors"
    if stage in record.weights and (
        not weights.is_file() or store.file_hash(weights) != record.weights[stage]
    ):
        yield "weights.safetensors is not the network of which the record has the hash"
    try:
        info = store.read_json(folder / "stage.json")
    except (OSError, ValueError):
        return  # reported as damage
    if info.get("accuracy") != record.accuracy.get(stage) and not record.diverged:
        yield f"the record's accuracy is {record.accuracy.get(stage)}, the stage's {info.get('accuracy')}"
    name = "score" if stage == "widths" else stage
    expected = stage_key(name, record.versions.get(stage, 1), info["depends_on"], _parent(record, stage))
    if expected != record.stages[stage]:
        yield f"what the stage depends on has the key {expected}"


def _parent(record: Record, stage: str) -> str | None:
    """Return the key of the stage that a stage goes on from; scores hang beside the others."""
    earlier = list(record.stages)[: list(record.stages).index(stage)]
    trunk = [record.stages[each] for each in earlier if each not in ("widths", "score")]
    return trunk[-1] if trunk else None


def _check_data(found: dict[Path, Record], root: Path, findings: Findings) -> None:
    read: dict[str, dict[str, Any] | None] = {}
    for path, record in found.items():
        asked = canonical(record.config["dataset"])
        if asked not in read:
            read[asked] = _data_now(record, root)
            findings.data["absent" if read[asked] is None else "read"] += 1
        for key, value in (read[asked] or {}).items():
            if record.data[key] != value:
                findings.problems.append(f"{path}: data.{key}={record.data[key]}: the data now have {value}")


def _data_now(record: Record, root: Path) -> dict[str, Any] | None:
    """Return what a record would say of its data if they were read now; None where they are not there.

    They are looked for in the folder of ``root`` that is called like the recorded one, else in ``root``.
    Nothing is downloaded, and no cache of decoded images is believed.
    """
    from lpslim.base import registry
    from lpslim.experiment.config import Dataset  # it imports torch

    recorded = record.config["dataset"]
    place = root / Path(recorded["root"]).name
    asked = {each.name: recorded[each.name] for each in fields(Dataset) if each.name in recorded}
    settings = Dataset(**{**asked, "root": str(place if place.is_dir() else root), "download": False})
    source = RENAMED.get(settings.source, settings.source)
    try:
        with tempfile.TemporaryDirectory() as cache:
            data = lookup.find("data", source).load(settings, Path(cache))
    except UserError:
        return None
    splits = {split: len(getattr(data, split)) for split in ("train", "val", "test")}
    return {"fingerprint": data.fingerprint, **splits}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print every problem and a summary; return 0 if there is none, 1 if any, 2 for the user's mistake."""
    parser = argparse.ArgumentParser(
        "python -m lpslim.experiment.records", description="Check records and stages."
    )
    command = parser.add_subparsers(required=True, metavar="verify").add_parser("verify", help=__doc__)
    command.add_argument("--results", type=Path, default=Path("results"), help="folder of records/")
    command.add_argument("--work-dir", type=Path, default=Path("outputs"), help="folder of stages/")
    command.add_argument("--data", action="store_true", help="also read the data again (nothing is fetched)")
    command.add_argument("--data-root", type=Path, default=Path("data"), help="where the data lie")
    options = parser.parse_args(arguments)
    if not options.results.is_dir():
        print(f"error: --results {options.results}: no such folder", file=sys.stderr)
        return 2
    findings = verify(options.results, options.work_dir, options.data_root if options.data else None)
    print(*findings.problems, findings.text(), sep="\n")
    return 1 if findings.problems else 0
