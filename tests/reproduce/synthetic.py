"""Records as a run writes them, with made-up numbers; written only below a test's own folder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lpslim.experiment import records
from lpslim.experiment.config import Config
from lpslim.experiment.records import Record
from lpslim.experiment.versions import RULE

ORIGINAL = {"name": "cifar10", "source": "torchvision batches", "fingerprint": "a" * 64}
JPEG = {"name": "cifar10", "source": "image folder cifar10_jpeg", "fingerprint": "b" * 64}
DIGITS = {"name": "digits", "source": "scikit-learn, embedded", "fingerprint": "c" * 64}
WIDTHS = {"features.0": [20, 64], "features.3": [31, 64], "features.7": [9, 128], "features.10": [77, 128]}


def record(experiment: str = "adhoc", seed: int = 0, **changes: Any) -> Record:
    """Make a record; ``changes`` are fields of Record, dotted keys of its config, or these three:

    ``dense``, ``pruned``, ``final``: the accuracies under ``last``; ``val`` adds 0.1, ``paper`` adds 0.2.
    """
    accuracy = {
        stage: changes.pop(stage, value)
        for stage, value in (("dense", 94.0), ("pruned", 60.0), ("final", 93.5))
    }
    fields = {name: changes.pop(name) for name in list(changes) if name in Record.__dataclass_fields__}
    config = _config(seed, {"name": experiment, **changes})
    epochs = {"baseline": 3, "sparsify": 2, "finetune": 4}
    if config["regularizer"]["penalty"] == "none":
        del epochs["sparsify"]
    content: dict[str, Any] = {
        "experiment": experiment,
        "seed": seed,
        "differs": {},
        "config": config,
        "data": {**ORIGINAL, "train": 45_000, "val": 5_000, "test": 10_000},
        "cost": {
            "rule": RULE,
            "dense": {"macs": 1000, "params": 100},
            "pruned": {"macs": 394, "params": 18},
            "flops_drop": 60.6,
            "params_drop": 82.0,
        },
        "accuracy": {
            "baseline": _protocols(accuracy["dense"]),
            "prune": {"last": accuracy["pruned"]},
            "finetune": _protocols(accuracy["final"]),
        },
        "channels": WIDTHS,
        "convergence": _convergence() if "sparsify" in epochs else [],
        "curves": {stage: _curve(n) for stage, n in epochs.items()},
        "seconds": {"baseline": 1.0},
        "environment": {"commit": None},
        **fields,
    }
    content["data"] = {"train": 45_000, "val": 5_000, "test": 10_000, **content["data"]}
    dense = (seed, content["data"]["fingerprint"], config["model"], config["baseline"], config["epoch_scale"])
    admm = (*dense, config["p"], config["M"], config["regularizer"])
    content.setdefault("stages", {"baseline": _key(dense), "sparsify": _key(admm)})
    content.setdefault("key", _key(experiment, seed, config, content["data"]["fingerprint"]))
    return Record(**content)


def write(results: Path, *made: Record) -> Path:
    """Write records below ``results`` and return it."""
    for each in made:
        records.write(results, each)
    return results


def seeds(experiment: str, finals: Sequence[float], **changes: Any) -> list[Record]:
    """Make one record per final accuracy, with the seeds 0, 1, 2, ..."""
    return [record(experiment, seed, final=final, **changes) for seed, final in enumerate(finals)]


def _config(seed: int, changes: dict[str, Any]) -> dict[str, Any]:
    config = asdict(Config(seed=seed))
    config["model"] |= {"family": "vgg", "name": "vgg16"}
    config["dataset"] |= {"name": "cifar10", "source": "cifar"}
    for key, value in changes.items():
        *path, leaf = key.split(".")
        node = config
        for part in path:
            node = node[part]
        assert leaf in node, f"no such key: {key}"
        node[leaf] = value
    return config


def _protocols(last: float) -> dict[str, float]:
    return {"last": last, "val": last + 0.1, "paper": last + 0.2}


def _convergence() -> list[dict[str, float]]:
    return [
        {
            "iteration": i,
            "epoch": float(i),
            "primal": 20 / i**2,
            "dual": 0.03 / i,
            "sparsity": 1 - 0.5 / i,
            "capped": 0.9 / i,
        }
        for i in range(1, 6)
    ]


def _curve(epochs: int) -> dict[str, list[float]]:
    return {name: [1.0] * epochs for name in ("train_loss", "val_accuracy", "test_accuracy")}


def _key(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
