"""What many records cost: read as JSON, indexed, read through the index, and rendered as tables.

    python benchmarks/records.py --quick

Records of made-up numbers, shaped and sized like a committed one, are written to a temporary folder: the
paper's own rows with three seeds each, then sweeps over p, M, rho and ratio with five seeds on ten pairs of
data set and network. Some diverged, some are of older code. ``tables`` is the whole process
``python -m reproduce.tables``, from its start to its end: without an index, with one, and with one that lacks
the newest record. 100,000 records, 0.6 GB; 10,000 with --quick. Four minutes on two CPU cores, half a
minute with --quick.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import timing
from timing import Spread

from lpslim import index
from lpslim.base.hashing import digest
from lpslim.experiment import records
from reproduce import published

ROOT = Path(__file__).parents[1]
TEMPLATE = next((ROOT / "results" / "records" / "cifar10_resnet20" / "lp").glob("*.json"))
PAIRS = [(data, model) for data in ("cifar10", "cifar100", "imagenette", "tiny_imagenet", "digits32")
         for model in ("resnet20", "vgg16")]  # fmt: skip
KNOBS = {"p": (1.0, 2.0, 3.0, 5.0, 8.0), "M": (0.5, 1.0, 2.0, None), "rho": (5e-4, 1e-3, 1.5e-3, 3e-3, 1e-2),
         "ratio": tuple(i / 40 for i in range(12, 32))}  # fmt: skip
SEEDS = range(5)
SHOWN = {"json_s": "read as JSON", "index_cold_s": "read as JSON, and indexed",
         "index_warm_s": "read through the index",
         "tables_cold_s": "all tables, no index yet", "tables_warm_s": "all tables, through the index",
         "tables_one_added_s": "all tables, one record added since"}  # fmt: skip
NAMES = {("cifar10", "vgg16"): "vgg16_cifar10/flops60_cos350"}  # a sweep that departs from a row of the paper
FORMER = "multiply-adds of convolution layers"  # a rule of counting that is not today's


def drawn(count: int) -> Iterator[dict[str, Any]]:
    """Yield so many different records, always the same ones."""
    template, random_ = json.loads(TEMPLATE.read_text()), random.Random(0)
    rows = [row for table in list(published.TITLES)[:3] for row in published.read(table) if row.experiment]
    filed = ((_asked(row), row.experiment, _network(row), seed) for row in rows for seed in range(3))
    cells = itertools.product(*KNOBS.values())
    knobs = [dict(zip(KNOBS, values, strict=True)) for values in cells]
    swept = ((chosen, NAMES.get(pair, f"sweep/{'_'.join(pair)}"), pair, seed)
             for chosen in knobs for pair in PAIRS for seed in SEEDS)  # fmt: skip
    for number, (chosen, name, pair, seed) in enumerate(
        itertools.islice(itertools.chain(filed, swept), count)
    ):
        yield _record(template, random_, number, chosen, name, pair, seed)


def _asked(row: published.Row) -> dict[str, Any]:
    epochs = {
        "epochs": int(row.place["finetune_epochs"]),
        "schedule": {"cos": "cosine"}.get(row.place["schedule"], "step"),
    }
    return {"target_flops": float(row.cells["flops_drop"]) / 100, "finetune": epochs}


def _network(row: published.Row) -> tuple[str, str]:
    model, _, data = row.table.partition("_")
    return data, f"resnet{row.place['depth']}" if "depth" in row.place else model


def _record(
    template: dict[str, Any], random_: random.Random, number: int, chosen: dict[str, Any], name: str,
    pair: tuple[str, str], seed: int,
) -> dict[str, Any]:  # fmt: skip
    made = copy.deepcopy(template)
    key = f"{number:016x}"
    differs = {knob: [made["config"][knob], value] for knob, value in chosen.items() if knob in KNOBS}
    made |= {"experiment": name, "key": key, "seed": seed, "differs": differs}
    finetune = made["config"]["finetune"] | chosen.get("finetune", {})
    made["config"] |= {"name": name, "seed": seed, "target_flops": None, **chosen, "finetune": finetune}
    made["config"]["dataset"]["name"], made["config"]["model"]["name"] = pair
    pull = [made["config"][knob] for knob in ("p", "M", "rho")]
    shared = {"baseline": digest([pair, seed]), "sparsify": digest([pair, seed, pull])}
    made["stages"] = {stage: shared.get(stage, key)[:16] for stage in made["stages"]}
    made["data"] |= {
        "name": pair[0],
        "source": f"image folder {pair[0]}",
        "fingerprint": f"{pair[0].encode().hex():0<64}",
    }
    for layer, (_, of) in made["channels"].items():
        made["channels"][layer] = [random_.randint(1, of), of]
    for row in made["convergence"]:
        row |= {"primal": 9 * random_.random(), "dual": random_.random(), "sparsity": random_.random()}
    for curve in made["curves"].values():
        for column, values in curve.items():
            curve[column] = [round(100 * random_.random(), 4) for _ in values]
    for stage, marks in made["accuracy"].items():
        made["accuracy"][stage] = dict.fromkeys(marks, 80 + 15 * random_.random())
    made["cost"]["flops_drop"] = 100 * random_.random()
    made["seconds"] = {stage: round(1000 * random_.random(), 1) for stage in made["seconds"]}
    made["weights"] = {stage: f"{random_.getrandbits(256):064x}" for stage in made["accuracy"]}
    if number % 1000 == 500:
        made["diverged"] = {"stage": "finetune", "epoch": 2, "step": 17, "loss": "nan"}
        del made["accuracy"]["finetune"]
    if number % 10_000 == 900:
        made["cost"]["rule"] = FORMER
    return made


def write(results: Path, made: dict[str, Any]) -> int:
    """Write a record as runs do, without waiting for the disk; return its size in bytes."""
    path = records.path_of(results, made["experiment"], made["key"])
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.write_text(json.dumps(made, indent=1) + "\n")


def rendered(results: Path) -> Spread:
    """Return the seconds of the process that renders all tables."""
    command = [sys.executable, "-m", "reproduce.tables", "--results", str(results)]
    places = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    work = partial(subprocess.run, command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL,
                   env={**os.environ, "PYTHONPATH": places})  # fmt: skip
    return Spread.of([timing.seconds(work)])


def measure(results: Path, count: int, rounds: int) -> dict[str, Any]:
    """Return one row of figures of so many records, and of one more."""
    made = drawn(count + 1)
    sizes = [write(results, each) for each in itertools.islice(made, count)]
    time.sleep(3)  # younger files are not yet in an index

    def once(work: timing.Work) -> Spread:
        return Spread.of([timing.seconds(work)])

    stored = results / index.NAME
    row: dict[str, Any] = {"records": len(sizes), "bytes": sum(sizes)}
    row["json_s"] = once(lambda: records.read_all(results))
    row["index_cold_s"] = once(lambda: index.read_all(results))
    row["index_bytes"] = stored.stat().st_size
    row["index_warm_s"] = Spread.of(timing.in_turn({"": lambda: index.read_all(results)}, rounds, 0)[""])
    row["tables_warm_s"] = Spread.of(rendered(results).median for _ in range(rounds))
    write(results, next(made))
    row["tables_one_added_s"] = rendered(results)
    stored.unlink()
    row["tables_cold_s"] = rendered(results)
    return row


def main() -> None:
    """Measure, print and write."""
    options = timing.parser(__doc__, "records").parse_args()
    host = timing.begin(options)
    count, rounds = (10_000, 3) if options.quick else (100_000, 5)
    with tempfile.TemporaryDirectory(prefix="lpslim-records-") as folder:
        row = measure(Path(folder), count, rounds)
    print(f"{row['records']} records, {row['bytes'] / 1e6:.0f} MB; index {row['index_bytes'] / 1e6:.0f} MB")
    for name, what in SHOWN.items():
        print(f"  {what:<44} {row[name].median:7.2f} s")
    timing.write(options, host, [row])


if __name__ == "__main__":
    main()
