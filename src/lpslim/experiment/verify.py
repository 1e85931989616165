"""Verification of records and stored stages: ``python -m lpslim.experiment.verify``.

Records must decode and lie in their place; stages that are still there must have their hashes, and hold the
networks that the records name.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lpslim.base import files
from lpslim.base.errors import UserError
from lpslim.experiment import records


def verify(results: Path, work: Path) -> tuple[list[str], str]:
    """Return the problems of all records below ``results`` and their stages below ``work``, and a summary."""
    problems: list[str] = []
    faults: dict[Path, str | None] = {}  # of each stage's folder; None where it is gone
    paths = records.paths(results)
    for path in paths:
        try:
            record = records.read(path)
        except UserError as problem:
            problems.append(str(problem))
            continue
        if path != records.path_of(results, record.experiment, record.key):
            problems.append(f"{path}: is not in its place, {record.experiment}/{record.key}.json")
        for stage, key in record.stages.items():
            folder = work / "stages" / stage.replace("layer_budget", "score") / key  # one store for both
            if folder not in faults:
                faults[folder] = files.verify_manifest(folder) if folder.is_dir() else None
            stated = record.weights.get(stage) if faults[folder] == "" else None
            if stated and stated != files.read_json(folder / files.MANIFEST)["files"].get(records.NETWORK):
                problems.append(f"{path}: weights.{stage}: is not the network in {folder}")
    problems += [f"{folder}: {fault}" for folder, fault in faults.items() if fault]
    gone = list(faults.values()).count(None)
    stages = f"{len(faults) - gone} stages, {gone} absent stages"
    return problems, f"{len(paths)} records, {stages}, {len(problems)} problems"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print problems and a summary; return 0 for none and 1 for some (exit code 2: bad arguments)."""
    parser = argparse.ArgumentParser("python -m lpslim.experiment.verify", description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of records/")
    parser.add_argument("--work-dir", type=Path, default=Path("outputs"), help="folder of stages/")
    options = parser.parse_args(arguments)
    if not options.results.is_dir():
        parser.error(f"--results {options.results}: no such folder")
    problems, summary = verify(options.results, options.work_dir)
    print(*problems, summary, sep="\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
