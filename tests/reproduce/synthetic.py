"""Records as a run writes them, with made-up numbers; written only below a test's own folder."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from lpslim.experiment import records
from lpslim.experiment.config import IGNORED_KEYS, Config, flat
from lpslim.experiment.records import RULE, VERSIONS, Record

ORIGINAL = {"name": "cifar10", "source": "torchvision batches", "fingerprint": "a" * 64}
JPEG = {"name": "cifar10", "source": "image folder cifar10_jpeg", "fingerprint": "b" * 64}
DIGITS = {"name": "digits", "source": "scikit-learn, embedded", "fingerprint": "c" * 64}
WIDTHS = {"features.0": (20, 64), "features.3": (31, 64), "features.7": (9, 128), "features.10": (77, 128)}
NAME = "vgg16_cifar10/flops60_cos350"  # published: 94.36, from 93.96
OWN = {"data": DIGITS, "model.name": "vgg_small"}
NO_ADMM = {"method": "no ADMM", "kind": "control", "regularizer.name": "none"}
NO_CAP = {"method": "Lp p=5, no cap", "M": None}
STAGES = ("baseline", "sparsify", "score", "prune", "finetune")
EPOCHS = {"baseline": 3, "sparsify": 2, "finetune": 4}
DEFAULTS = {"dense": 94.0, "pruned": 60.0, "final": 93.5, "drop": 60.6, "rule": RULE, "versions": {}}
CONVERGENCE = [
    {"iteration": i, "primal": 20 / i**2, "dual": 0.03 / i, "sparsity": 1 - 0.5 / i, "capped": 0.9 / i}
    for i in range(1, 6)
]


def record(experiment: str = "adhoc", seed: int = 0, **changes: Any) -> Record:
    """Make a record; ``changes`` are fields of Record, dotted keys of its config, or keys of DEFAULTS:

    ``dense``, ``pruned``, ``final``: the accuracies under ``last``; ``val`` adds 0.1, ``paper`` adds 0.2.
    ``drop``: of the FLOPs, in percent. Settings, data, rule and versions enter the keys, as in a run.
    """
    given = {key: changes.pop(key, value) for key, value in DEFAULTS.items()}
    fields = {name: changes.pop(name) for name in list(changes) if name in Record.__struct_fields__}
    config = _config(seed, {"name": experiment, **changes})
    stages = [s for s in STAGES if s != "sparsify" or config["regularizer"]["name"] != "none"]
    epochs = EPOCHS if "sparsify" in stages else {"baseline": 3, "finetune": 6}
    versions = {stage: given["versions"].get(stage, VERSIONS[stage]) for stage in stages}
    sizes = {"metric": "accuracy", "train": 45_000, "val": 5_000, "test": 10_000}
    data = {**ORIGINAL, **sizes, **fields.pop("data", {})}
    drop, basis = given["drop"], (data["fingerprint"], given["rule"], versions)
    keys = _keys(config, *basis, seed)
    content: dict[str, Any] = {
        "schema": 2, "experiment": experiment, "method": "Lp p=5, M=1", "kind": "ADMM", "seed": seed,
        "stages": keys, "groups": _keys(config, *basis, None), "versions": versions, "weights": {},
        "differs": {}, "config": config, "data": data, "channels": WIDTHS,
        "cost": {
            "rule": given["rule"], "flops_drop": drop, "params_drop": drop + 21.4,
            "dense": {"macs": 100_000, "params": 100_000},
            "pruned": {"macs": round(1000 * (100 - drop)), "params": round(1000 * (78.6 - drop))},
        },
        "accuracy": {
            stage: {"last": given[key], "val": given[key] + 0.1, "paper": given[key] + 0.2}
            for stage, key in (("baseline", "dense"), ("prune", "pruned"), ("finetune", "final"))
        },
        "convergence": CONVERGENCE if "sparsify" in stages else [],
        "curves": {
            stage: {name: [1.0] * n for name in ("train_loss", "val_accuracy", "test_accuracy")}
            for stage, n in epochs.items()
        },
        "seconds": {"baseline": 1.0}, "environment": {"commit": None}, **fields,
    }  # fmt: skip
    if not data["val"]:
        for accuracy in content["accuracy"].values():
            del accuracy["val"]
        for curve in content["curves"].values():
            curve["val_accuracy"] = []
    return msgspec.convert({"key": content["stages"]["finetune"], **content}, Record)


def lost(experiment: str = "adhoc", seed: int = 0, stage: str = "finetune", **changes: Any) -> Record:
    """Make the record of a run that diverged in epoch 3 of ``stage``, before it was pruned or after."""
    whole = msgspec.to_builtins(record(experiment, seed, **changes))
    del whole["accuracy"]["finetune"], whole["curves"]["finetune"]
    if stage != "finetune":
        whole |= {"cost": {"rule": RULE}, "channels": {}, "convergence": [], "accuracy": {}, "curves": {}}
    where = {"stage": stage, "epoch": 3, "step": 7, "loss": "nan"}
    return msgspec.convert(whole | {"diverged": where}, Record)


def write(results: Path, *made: Record) -> Path:
    """Write records below ``results`` and return it."""
    for each in made:
        records.write(results, each)
    return results


def seeds(experiment: str, finals: Sequence[float], **changes: Any) -> list[Record]:
    """Make one record per final accuracy, with the seeds 0, 1, 2, ..."""
    return [record(experiment, seed, final=final, **changes) for seed, final in enumerate(finals)]


def _config(seed: int, changes: dict[str, Any]) -> dict[str, Any]:
    config = asdict(Config(seed=seed, equal_epochs=True))
    network = {"model.family": "vgg", "model.name": "vgg16", "dataset.name": "cifar10"}
    for key, value in (network | changes).items():
        *path, leaf = key.split(".")
        node = config
        for part in path:
            node = node[part]
        assert leaf in node, f"no such key: {key}"
        node[leaf] = value
    return config


def _keys(config: dict[str, Any], data: str, rule: str, versions: dict[str, int], seed: int | None) -> dict:
    """Return a key per stage, of what it and the stages before it depend on."""
    arithmetic = [config["trainer"][key] for key in ("precision", "channels_last", "compile")]
    dense = [arithmetic, *(config[key] for key in ("model", "dataset", "baseline"))]
    admm = [dense, *(config[key] for key in ("p", "M", "rho", "lamb", "regularizer"))]
    every = [rule, {key: own for key, own in flat(config) if key not in IGNORED_KEYS and key != "seed"}]
    keys, code = {}, []
    for stage, version in versions.items():
        code.append(version)
        text = repr((stage, seed, data, code, {"baseline": dense, "sparsify": admm}.get(stage, every)))
        keys[stage] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return keys
