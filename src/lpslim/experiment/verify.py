"""Verification of records and stored stages: ``python -m lpslim.experiment.verify``.

Every record must decode and lie where its experiment and key say; every stage that is still there must have
its hashes, and hold the network that the record names.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from lpslim.base import files
from lpslim.base.errors import UserError
from lpslim.experiment import records
from lpslim.experiment.records import NETWORK, Record


def verify(results: Path, work: Path) -> tuple[list[str], dict[str, int]]:
    """Return the problems of all records below ``results`` and their stages below ``work``, and counts."""
    problems: list[str] = []
    stages: dict[Path, str] = {}  # folder -> its fault
    absent: set[Path] = set()
    paths = sorted((results / "records").rglob("*.json"))
    for path in paths:
        try:
            record = records.read(path)
        except UserError as problem:
            problems.append(str(problem))
            continue
        if path != records.path_of(results, record.experiment, record.key):
            problems.append(f"{path}: is not in its place, {record.experiment}/{record.key}.json")
        for stage, folder in _folders(record, work):
            if not folder.is_dir():
                absent.add(folder)
                continue
            if folder not in stages:
                stages[folder] = files.verify_manifest(folder)
            if not stages[folder] and stage in record.weights:
                network = files.read_json(folder / files.MANIFEST)["files"].get(NETWORK)
                if network != record.weights[stage]:
                    problems.append(f"{path}: weights.{stage}: is not the network in {folder}")
    problems += [f"{folder}: {fault}" for folder, fault in stages.items() if fault]
    counts = {"records": len(paths), "stages": len(stages), "absent stages": len(absent)}
    return problems, {**counts, "problems": len(problems)}


def _folders(record: Record, work: Path) -> Iterator[tuple[str, Path]]:
    for stage, key in record.stages.items():
        yield stage, work / "stages" / ("score" if stage == "layer_budget" else stage) / key


def main(arguments: Sequence[str] | None = None) -> int:
    """Print problems and counts; return 0 for none, 1 for some, 2 for bad arguments."""
    parser = argparse.ArgumentParser("python -m lpslim.experiment.verify", description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of records/")
    parser.add_argument("--work-dir", type=Path, default=Path("outputs"), help="folder of stages/")
    options = parser.parse_args(arguments)
    if not options.results.is_dir():
        parser.error(f"--results {options.results}: no such folder")
    problems, counts = verify(options.results, options.work_dir)
    print(*problems, ", ".join(f"{count} {name}" for name, count in counts.items()), sep="\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
