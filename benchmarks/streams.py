"""Residual streams on real data: what it costs or gains to prune channels that are added across layers.

    python -m benchmarks.streams --data data/cifar10 [--weights FOLDER]

A published CIFAR-10 ResNet loses the same share of its multiply-adds in three ways: `coupled` off and on by
magnitude, and by Torch-Pruning's group norm, whose residual streams go too. Then each is fine-tuned alike,
with the suite's own loop and evaluation. Ways that the JSON has are not measured again. Three epochs of a
pruned ResNet-56 take about ten minutes on a core with bf16.
"""

from __future__ import annotations

import argparse
import copy
import resource
import time
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lpslim
from benchmarks import silenced, timing, zoo
from lpslim.base.files import read_json, write_json
from lpslim.data.datasets import cifar
from lpslim.data.images import TensorSplit
from lpslim.data.splits import Data
from lpslim.experiment.config import Dataset
from lpslim.models import family
from lpslim.models.family import PUBLIC
from lpslim.pruning import cost
from lpslim.training.evaluation import evaluate
from lpslim.training.loop import fit
from lpslim.training.schedule import RuntimeConfig, TrainConfig

FAMILY = "resnet_cifar"
STEPS = 400  # of Torch-Pruning's pruner, as in its own script


def by_lpslim(model: nn.Module, example: Tensor, target: float, **options: Any) -> nn.Module:
    """Return the network pruned by magnitude, with the zoo's floor."""
    return lpslim.prune(model, example, target_flops=target, floor=zoo.FLOOR, **options).model


def by_torch_pruning(model: nn.Module, example: Tensor, target: float) -> nn.Module:
    """Return the network pruned as in the zoo, in finer steps."""
    return zoo.by_torch_pruning(model, example, target, classes=10, most_steps=STEPS)[0]


METHODS = {"off": by_lpslim, "on": partial(by_lpslim, coupled=True), "torch_pruning": by_torch_pruning}


def load(options: argparse.Namespace) -> tuple[nn.Module, Data]:
    """Return the published network, and CIFAR-10 under the normalisation that it was trained with."""
    kind = family.get(FAMILY)
    settings = Dataset("cifar10", "cifar", root=str(options.data), val_fraction=0, crop_padding=4, flip=True)
    data = cifar.load(settings, options.cache)
    if (entry := family.published(FAMILY, options.network, PUBLIC)) is not None:
        data = data.normalised(entry.mean, entry.std)
    model = kind.build(options.network, num_classes=data.num_classes)
    kind.load_weights(model, options.network, PUBLIC, options.weights and str(options.weights))
    if options.few:
        data = replace(data, train=_few(data.train, options.few), test=_few(data.test, options.few))
    return model, data


def _few(split: TensorSplit, count: int) -> TensorSplit:
    """Return about so many images of a split, of all classes."""
    step = len(split) // count
    return replace(split, images=split.images[::step], labels=split.labels[::step])


def measure(method: str, model: nn.Module, data: Data, options: argparse.Namespace) -> dict[str, Any]:
    """Prune, compare with the silenced original, evaluate, fine-tune: the row of the JSON."""
    example, config = torch.zeros(1, *data.shape), TrainConfig(options.epochs, lr=0.01, batch_size=128)
    pruned = METHODS[method](copy.deepcopy(model), example, options.target)
    before, after = (cost.count(network, example) for network in (model, pruned))
    compared = silenced.compare(model, pruned, data.shape)
    cut = evaluate(pruned, data.test, task=data.task)["accuracy"]
    print(f"{method}: {1 - after.macs / before.macs:.4f} removed, {cut:.2f} % before fine-tuning", flush=True)
    began, cpu = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_utime
    runtime = RuntimeConfig(device="cpu", precision="bf16")
    curve = fit(pruned, data, config, runtime, seed=options.seed, stage="finetune")
    return {
        "method": method,
        "reached": 1 - after.macs / before.macs,
        "parameters": 1 - after.params / before.params,
        **asdict(compared),
        "cut_accuracy": cut,
        "accuracy": curve[-1]["test_accuracy"],
        "curve": curve,
        "seconds": time.perf_counter() - began,
        "cpu_seconds": resource.getrusage(resource.RUSAGE_SELF).ru_utime - cpu,
        "date": datetime.now(UTC).date().isoformat(),
    }


def main() -> None:
    """Measure what is missing, and write after each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="CIFAR-10")
    parser.add_argument("--weights", type=Path, metavar="FOLDER", help="of the published file; else torch's")
    parser.add_argument("--network", default="resnet56", choices=family.get(FAMILY).names, metavar="NAME")
    parser.add_argument("--target", type=float, default=0.586, help="share of the multiply-adds: 0.586")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="WAY")
    parser.add_argument("--few", type=int, default=0, metavar="N", help="so many images alone, to try it")
    parser.add_argument("--cache", type=Path, default=Path("outputs/data"), metavar="FOLDER")
    parser.add_argument("--json", type=Path, default=timing.RESULTS / "streams.json", metavar="FILE")
    options = parser.parse_args()
    kept = ("network", "target", "epochs", "seed", "few")
    settings = {key: getattr(options, key) for key in kept}
    content = read_json(options.json) if options.json.is_file() else {"settings": settings, "rows": []}
    if content["settings"] != settings:
        parser.error(f"{options.json} is of {content['settings']}: name another file with --json")
    model, data = load(options)
    if "dense_accuracy" not in content:
        content["dense_accuracy"] = evaluate(model, data.test, task=data.task)["accuracy"]
    content |= {"source": data.source, "fingerprint": data.fingerprint}
    for method in options.methods:
        if any(row["method"] == method for row in content["rows"]):
            continue
        content["rows"].append(measure(method, model, data, options))
        content["machine"] = timing.machine()
        content["versions"] = {package: version(package) for package in zoo.PACKAGES}
        write_json(options.json, content)


if __name__ == "__main__":
    main()
