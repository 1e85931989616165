"""Ways to do a training step side by side: layout in memory, torch.compile, CUDA graphs; float32 and bf16.

    python benchmarks/training_step.py --quick
    python benchmarks/training_step.py --networks vgg16 --precisions no --batch 256

The step is the suite's own (lpslim.training.runtime.Training), on random images of 32x32. All ways of one network and
precision are done in turn, round by round, in one process, so that a drifting machine hurts all alike; on a
GPU a round is ten steps. Medians, quartiles in brackets. ``ratio`` is the time over that of the first way,
channels_last and eager; ``compile`` is what the first steps took beyond later ones, with an empty cache of
kernels; ``after`` is how many epochs of CIFAR (45,000 images) make up for one compilation. On a GPU ``epoch``
projects such an epoch's seconds. A quarter of an hour on two CPU cores, two minutes with --quick.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from statistics import median
from typing import Any

import timing
import torch
from admm_overhead import NETWORKS
from lpslim.settle import MODES, name
from timing import Spread

from lpslim import speed
from lpslim.base import registry
from lpslim.data.images import TensorSplit, pixel_statistics
from lpslim.data.splits import Data
from lpslim.training.runtime import Hooks, Training
from lpslim.training.schedule import PRECISIONS, Recipe, Trainer

EPOCH = 45_000  # images of CIFAR-10 without its validation split
SHOWN = ("resnet20", "resnet56", "vgg16")


class Block:
    """So many steps as the suite does before it looks at a loss: one, on a GPU ten."""

    def __init__(self, network: str, batch: int, trainer: Trainer) -> None:
        torch.manual_seed(0)
        model = lookup.find("models", NETWORKS[network].family).build(network, num_classes=10)
        images = torch.randint(256, (batch, 32, 32, 3), dtype=torch.uint8)
        split = TensorSplit(images, torch.randint(10, (batch,)), *pixel_statistics(images), 0, False)
        data = Data("random", "made here", "0" * 64, 10, (3, 32, 32), split, split, split)
        self.training = Training(model, data, Recipe(batch_size=batch), trainer, Hooks())
        self.training.model.train()
        self.inputs, self.labels = next(self.training.data.train.train_batches(batch, seed=0))
        self.images = batch * self.training.check_every
        self.compilation = 0.0

    def __call__(self) -> None:
        """Do them."""
        for _ in range(self.training.check_every):
            self.training.step(self.inputs, self.labels)
        float(self.training.progress.loss_sum)

    def warm(self) -> None:
        """Do those that pay for set-up and compilation, and note how long those take."""
        with speed.empty_cache():
            first = timing.seconds(self)
        timing.seconds(self)
        self.compilation = max(0.0, first - timing.seconds(self))


def measure(network: str, precision: str, batch: int, rounds: int) -> list[dict[str, Any]]:
    """Return a row for every way of training one network."""
    cuda = torch.cuda.is_available()
    asked = Trainer(precision=precision, threads=torch.get_num_threads())
    ways = [replace(asked, channels_last=layout, compile=compile, cuda_graphs=graphs)
            for compile, graphs in MODES for layout in (True, False) if cuda or not graphs]  # fmt: skip
    blocks = {name(way): Block(network, batch, way) for way in ways}  # all, before anything is compiled
    for block in blocks.values():
        block.warm()
    times = timing.in_turn(blocks, rounds)
    first, rows = name(ways[0]), []
    for way in ways:
        key = name(way)
        images, compilation = blocks[key].images, blocks[key].compilation if way.compile else 0.0
        rates = Spread.of(images / t for t in times[key])
        gained = EPOCH / images * (median(times[first]) - median(times[key]))
        rows.append(
            {
                "network": network,
                "precision": precision,
                "batch": batch,
                "way": key,
                "step_ms": Spread.of(1e3 * t * batch / images for t in times[key]),
                "images_per_second": rates,
                "ratio": timing.ratio(times, key, over=first),
                "compile_seconds": compilation,
                "after_epochs": compilation / gained if way.compile and gained > 0 else None,
                "epoch_seconds": EPOCH / rates.median if cuda else None,
            }
        )
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Print the rows of one network."""
    print(f"\n{rows[0]['network']}, batch {rows[0]['batch']}, precision {rows[0]['precision']}")
    for row in rows:
        note = ""
        if row["compile_seconds"]:
            after = (
                "never" if row["after_epochs"] is None else f"after {math.ceil(row['after_epochs'])} epochs"
            )
            note = f"   compile {row['compile_seconds']:.0f} s, made up for {after}"
        if row["epoch_seconds"]:
            note += f"   {row['epoch_seconds']:.1f} s an epoch"
        rate = f"{row['step_ms'].median:8.1f} ms {row['images_per_second'].median:8.0f} images/s"
        print(f"  {row['way']:<40} {rate}   time x {row['ratio']}{note}")


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = timing.parser(__doc__, "training_step")
    parser.add_argument("--networks", nargs="+", choices=SHOWN, metavar="NAME")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["no", "bf16"], metavar="NAME")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, help="default: 9; 3 with --quick")
    return parser.parse_args()


def main() -> None:
    """Measure, print and write."""
    options = parse()
    host, rows = timing.begin(options), []
    for network in options.networks or (SHOWN[:1] if options.quick else SHOWN):
        for precision in options.precisions:
            found = measure(network, precision, options.batch, options.rounds or (3 if options.quick else 9))
            show(found)
            rows += found
    timing.write(options, host, rows)


if __name__ == "__main__":
    main()
