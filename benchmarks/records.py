"""Time to read many records, and to render all tables from them.

    python benchmarks/records.py --quick

Records of made-up numbers, some 6 kB each, are written to a temporary folder: sweeps over p, M, rho and ratio
with five seeds, on ten pairs of data set and network. ``read`` is records.read_all in this process;
``tables`` is the process ``python -m reproduce.tables``. 100,000 records; 10,000 with --quick. 4 minutes.
"""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import timing
from timing import Spread

from lpslim.base.files import digest
from lpslim.experiment import records
from lpslim.experiment.config import Config

ROOT = Path(__file__).parents[1]
DATA = ("cifar10", "cifar100", "imagenette", "tiny_imagenet", "digits32")
KNOBS = {"p": (1.0, 2.0, 3.0, 5.0, 8.0), "M": (0.5, 1.0, 2.0, None), "rho": (5e-4, 1e-3, 1.5e-3, 3e-3, 1e-2),
         "ratio": tuple(i / 40 for i in range(12, 32))}  # fmt: skip
STAGES = ("baseline", "sparsify", "prune", "finetune")
EPOCHS = {"baseline": 60, "sparsify": 3, "finetune": 60}


def drawn(count: int) -> Iterator[dict[str, Any]]:
    """Yield the contents of so many different records, always the same ones."""
    numbers = random.Random(0)
    knobs = (dict(zip(KNOBS, values, strict=True)) for values in itertools.product(*KNOBS.values()))
    cells = itertools.product(knobs, DATA, ("resnet20", "vgg16"), range(5))
    for chosen, data, model, seed in itertools.islice(cells, count):
        yield content(chosen, data, model, seed, numbers)


def content(
    chosen: dict[str, Any], data: str, model: str, seed: int, numbers: random.Random
) -> dict[str, Any]:
    """Return the content of one record."""
    config = asdict(Config(name=f"sweep/{data}_{model}", seed=seed, **chosen))
    config["model"]["name"], config["dataset"]["name"] = model, data
    shaping = {"baseline": {}, "sparsify": {name: chosen[name] for name in ("p", "M", "rho")}}
    parts = {stage: [data, model, stage, shaping.get(stage, chosen)] for stage in STAGES}
    stages = {stage: digest([*part, seed])[:16] for stage, part in parts.items()}

    def percents(count: int) -> list[float]:
        return [round(100 * numbers.random(), 4) for _ in range(count)]

    columns = ("train_loss", "val_accuracy", "test_accuracy")
    curves = {stage: {name: percents(epochs) for name in columns} for stage, epochs in EPOCHS.items()}
    return {
        "schema": 2,
        "experiment": config["name"],
        "method": f"Lp p={chosen['p']:g}, M={chosen['M']}",
        "kind": "ADMM",
        "seed": seed,
        "key": stages["finetune"],
        "stages": stages,
        "groups": {stage: digest(part)[:16] for stage, part in parts.items()},
        "versions": {stage: records.VERSIONS[stage] for stage in STAGES},
        "weights": {stage: digest([key, stage]) for stage, key in stages.items()},
        "differs": {},
        "config": config,
        "data": {"name": data, "source": f"image folder {data}", "fingerprint": digest(data),
                 "metric": "accuracy", "train": 45000, "val": 5000, "test": 10000},
        "cost": {"rule": records.RULE, "flops_drop": 50.0, "params_drop": 50.0,
                 "dense": {"macs": 40_000_000, "params": 270_000},
                 "pruned": {"macs": 20_000_000, "params": 135_000}},
        "accuracy": {stage: dict.fromkeys(("last", "val", "paper"), percents(1)[0]) for stage in STAGES},
        "channels": {f"layer{i}.conv1": [numbers.randint(1, 64), 64] for i in range(9)},
        "convergence": [{"iteration": i, "primal": numbers.random()} for i in range(1, 4)],
        "curves": curves,
        "seconds": dict.fromkeys(STAGES, 100.0),
        "environment": {"device": "cpu", "torch": "2.14.1"},
    }  # fmt: skip


def tables(results: Path) -> None:
    """Render all tables in a process of their own."""
    command = [sys.executable, "-m", "reproduce.tables", "--results", str(results)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    """Measure, print and write."""
    options = timing.parser(__doc__, "records").parse_args()
    host, size, count = timing.begin(options), 0, 10_000 if options.quick else 100_000
    with tempfile.TemporaryDirectory(prefix="lpslim-records-") as folder:
        results = Path(folder)
        for made in drawn(count):
            path = records.path_of(results, made["experiment"], made["key"])
            path.parent.mkdir(parents=True, exist_ok=True)
            size += path.write_bytes(msgspec.json.encode(made))
        works = {"read": lambda: records.read_all(results), "tables": lambda: tables(results)}
        times = {name: Spread.of(times) for name, times in timing.in_turn(works, 3, warm=0).items()}
    print(f"{count} records, {size / 1e6:.0f} MB: read {times['read']} s, all tables {times['tables']} s")
    timing.write(options, host, [{"records": count, "bytes": size, **times}])


if __name__ == "__main__":
    main()
