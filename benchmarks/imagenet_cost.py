"""What the five ImageNet rows cost: their epochs, times the images, times the time of a training step.

    python benchmarks/imagenet_cost.py                 # the step is measured on this device
    python benchmarks/imagenet_cost.py --rate 2470     # or its images a second are given, and none is run

A row's networks are trained at the experiment files' global batch; on n devices each takes 1/n of it, so
the step is measured at each of these batches (on a CPU at 16 at most), for the dense network and, with fresh
weights, for each row's pruned one; with --rate they are all taken to be as fast. What the exchange of
gradients and the decoding of images add is not in it (docs/scale.md). An epoch is its training images and a
third of those that are evaluated, which are only run forward. Stages that rows share are counted once.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timing
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from timing import Spread
from torch import nn

import lpslim
from lpslim import cli
from lpslim.experiment.config import Config
from lpslim.experiment.keys import recipes
from lpslim.models import resnet_imagenet
from lpslim.training.schedule import scaled

CONF = Path(__file__).resolve().parents[1] / "conf"
ROWS = "resnet50_imagenet"
IMAGES, TEST = 1_281_167, 50_000
DEVICES = (1, 8, 64)
LARGEST_ON_CPU = 16


@dataclass(frozen=True)
class Row:
    """A row of the table: epochs of its stages, and the share of the multiply-adds that it removes."""

    name: str
    baseline: int
    sparsify: int
    finetune: int
    drop: float
    batch: int


def rows() -> list[Row]:
    """Return the table's rows as their experiment files have them."""
    cli.register(CONF)
    found = []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for path in sorted((CONF / "experiment" / ROWS).glob("[!_]*.yaml")):
            config = cli.checked(compose("config", [f"experiment={ROWS}/{path.stem}"]))
            found.append(_row(config))
    return found


def _row(config: Config) -> Row:
    epochs = [scaled(recipe, config.epoch_scale).epochs for recipe in recipes(config).values()]
    assert config.target_flops is not None
    return Row(config.name, *epochs, config.target_flops, config.finetune.batch_size)


def epoch_images(val_fraction: float = 0.02) -> float:
    """Return how many images an epoch is worth; a forward pass is a third of a step."""
    val = round(val_fraction * IMAGES)
    return IMAGES - val + (val + TEST) / 3


def hours(epochs: int, seconds_per_image: float) -> float:
    """Return the time of so many epochs, in hours."""
    return epochs * epoch_images() * seconds_per_image / 3600


class Step:
    """A training step of a network at 224 px."""

    def __init__(self, model: nn.Module, batch: int, precision: torch.dtype) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.to(self.device).to(memory_format=torch.channels_last).train()
        self.optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, weight_decay=1e-4, foreach=True)
        images = torch.randn(batch, 3, 224, 224, device=self.device)
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.labels = torch.randint(1000, (batch,), device=self.device)
        self.autocast = partial(
            torch.autocast, self.device.type, precision, enabled=precision != torch.float32
        )

    def __call__(self) -> None:
        """Do one step."""
        with self.autocast():
            loss = F.cross_entropy(self.model(self.images).float(), self.labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def measured(drops: Sequence[float], batch: int, precision: torch.dtype, rounds: int) -> dict[float, Spread]:
    """Return seconds per image: of the dense network (0.0) and of one with each share removed."""
    dense = resnet_imagenet.build("resnet50", num_classes=1000, in_channels=3)
    networks = {0.0: dense}
    for drop in drops:
        networks[drop] = lpslim.prune(dense, torch.zeros(1, 3, 224, 224), target_flops=drop).model
    times = timing.in_turn({str(d): Step(m, batch, precision) for d, m in networks.items()}, rounds)
    return {drop: Spread.of(t / batch for t in times[str(drop)]) for drop in networks}


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = timing.parser(__doc__, "imagenet_cost")
    parser.add_argument("--rate", type=float, metavar="N", help="images a second of one device; none is run")
    parser.add_argument("--bf16", action="store_true", help="measure in bf16")
    parser.add_argument("--rounds", type=int, help="default: 5; 2 with --quick")
    return parser.parse_args()


def costs(table: Sequence[Row], seconds: Mapping[int, Mapping[float, float]]) -> list[dict[str, Any]]:
    """Return for every part of the table its epochs, and its hours on each number of devices.

    seconds: devices -> share removed -> seconds per image of one device.
    """
    parts = [("dense, then ADMM", table[0].baseline + table[0].sparsify, 0.0)]
    parts += [(row.name, row.finetune, row.drop) for row in table]
    found = [
        {"part": name, "epochs": epochs, "hours": {n: hours(epochs, seconds[n][drop] / n) for n in seconds}}
        for name, epochs, drop in parts
    ]
    total = {n: sum(part["hours"][n] for part in found) for n in seconds}
    return [
        *found,
        {"part": "all, one seed", "epochs": sum(part["epochs"] for part in found), "hours": total},
    ]


def show(found: Sequence[dict[str, Any]], batch: int) -> None:
    """Print the table: hours of wall time."""
    numbers = list(found[0]["hours"])
    print(f"\n{'hours on so many devices, of which each takes':<48}", *(f"{n:>10}" for n in numbers))
    print(f"{'images of a batch':<48}", *(f"{batch // n:>10}" for n in numbers))
    for part in found:
        print(
            f"  {part['part']:<34} {part['epochs']:>4} epochs",
            *(f"{h:10.1f}" for h in part["hours"].values()),
        )


def main() -> None:
    """Measure, print and write."""
    options = parse()
    host, table = timing.begin(options), rows()
    drops, batch = sorted({row.drop for row in table}), table[0].batch
    precision = torch.bfloat16 if options.bf16 else torch.float32
    largest = batch if torch.cuda.is_available() else LARGEST_ON_CPU
    seen: dict[int, dict[float, Spread]] = {}
    seconds = {n: dict.fromkeys([0.0, *drops], 1 / (options.rate or 1)) for n in DEVICES}
    for n in DEVICES if not options.rate else ():
        taken = min(batch // n, largest)
        if taken not in seen:
            seen[taken] = measured(drops, taken, precision, options.rounds or (2 if options.quick else 5))
        seconds[n] = {drop: spread.median for drop, spread in seen[taken].items()}
    for taken, spreads in seen.items():
        for drop, spread in spreads.items():
            print(f"batch {taken}, {100 * drop:.1f} % removed: {1e3 * spread.median:.1f} ms an image")
    found = costs(table, seconds)
    show(found, batch)
    steps = [{"batch": taken, "drop": drop, "seconds_per_image": spread}
             for taken, spreads in seen.items() for drop, spread in spreads.items()]  # fmt: skip
    timing.write(options, host, [*steps, *found])


if __name__ == "__main__":
    main()
