"""Training speed by precision and memory layout: dense and pruned networks, float32 and bf16, both layouts.

    python benchmarks/precision.py --quick
    python benchmarks/precision.py --networks vgg16 --batch 256 --json precision.json

Each way trains with the suite's own loop (lpslim.training.loop.fit) on random images of 32x32, augmented as
CIFAR's are; the first step of an epoch is not counted. The ways of a network alternate, round by round,
another one first each time, so that a drifting machine hurts all alike. Printed are images a second and their
ratio to the best way's: medians and quartiles. The pruned networks have the published multiply-adds (VGG-16
-60.6 %, ResNet-56 -58.6 %, ResNet-20 -50 %), by the magnitude of random weights. A quarter of an hour on two
CPU cores; a minute with --quick, which takes ResNet-20 alone.
"""

from __future__ import annotations

import copy
import time
from itertools import product
from statistics import median
from typing import Any

import timing
import torch
from timing import Spread
from torch import nn

from lpslim import prune
from lpslim.data.images import TensorSplit, pixel_statistics
from lpslim.data.splits import Data
from lpslim.models import family
from lpslim.training.callbacks import Callback
from lpslim.training.loop import fit
from lpslim.training.schedule import RuntimeConfig, TrainConfig

NETWORKS = {"vgg16": ("vgg", 0.606), "resnet56": ("resnet_cifar", 0.586), "resnet20": ("resnet_cifar", 0.5)}
PRECISIONS = ("fp32", "bf16")
IMAGE = (3, 32, 32)


class Clock(Callback):
    """Notes when a step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def after_step(self, step: int, steps_per_epoch: int) -> None:
        """Wait for a GPU at both ends of what is counted, and look at the clock."""
        if torch.cuda.is_available() and step in (1, steps_per_epoch):
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


class Way:
    """One network trained in one way: a precision, a layout, eager or compiled."""

    def __init__(self, model: nn.Module, data: Data, batch: int, runtime: RuntimeConfig) -> None:
        self.model, self.data, self.runtime = copy.deepcopy(model), data, runtime
        self.config = TrainConfig(batch_size=batch, lr=0.01)

    def __str__(self) -> str:
        layout = "channels_last" if self.runtime.channels_last else "contiguous"
        return f"{self.runtime.precision} {layout}{' compiled' if self.runtime.compile else ''}"

    def rate(self) -> float:
        """Train for an epoch; return images a second."""
        clock = Clock()
        fit(self.model, self.data, self.config, self.runtime, seed=0, stage="benchmark", callback=clock)
        return self.config.batch_size * (len(clock.ends) - 1) / (clock.ends[-1] - clock.ends[0])


def random_data(count: int) -> Data:
    """Return ``count`` random training images, and two to evaluate on."""
    images = torch.randint(256, (count, *IMAGE[1:], IMAGE[0]), dtype=torch.uint8)
    labels, statistics = torch.randint(10, (count,)), pixel_statistics(images)
    train = TensorSplit(images, labels, *statistics, crop_padding=4, flip=True)
    few = TensorSplit(images[:2], labels[:2], *statistics)
    return Data("random", "made here", "0" * 64, 10, IMAGE, train, few, few)


def networks(name: str) -> dict[str, nn.Module]:
    """Return a network as it is and pruned."""
    kind, target = family.get(NETWORKS[name][0]), NETWORKS[name][1]
    model = kind.build(name, num_classes=10, **kind.arguments(name, IMAGE))
    pruned = prune(model, torch.zeros(1, *IMAGE), target_flops=target).model
    return {"dense": model, f"-{100 * target:g} %": pruned}


def measure(ways: list[Way], rounds: int) -> dict[str, list[float]]:
    """Return each way's images a second, round by round, after a round that is not counted."""
    rates: dict[str, list[float]] = {str(way): [] for way in ways}
    for done in range(rounds + 1):
        start = done % len(ways)
        for way in ways[start:] + ways[:start]:
            rate = way.rate()
            if done:
                rates[str(way)].append(rate)
    return rates


def rows(network: str, size: str, batch: int, rates: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Return and print a row per way."""
    best = max(rates, key=lambda way: median(rates[way]))
    found = []
    print(f"\n{network} {size}, batch {batch}")
    for way, own in rates.items():
        ratio = Spread.of(a / b for a, b in zip(own, rates[best], strict=True))
        described = {"network": network, "size": size, "batch": batch, "way": way}
        found.append({**described, "images_per_second": Spread.of(own), "ratio_to_best": ratio})
        print(f"  {way:<27} {Spread.of(own)} images/s   x {ratio}{'   best' if way == best else ''}")
    return found


def main() -> None:
    """Measure, print and write."""
    parser = timing.parser(__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, metavar="NAME")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--compile", action="store_true", help="also compiled training steps; minutes longer")
    options = parser.parse_args()
    steps, rounds = (3, 3) if options.quick else (6, 9)
    if torch.cuda.is_available():
        steps *= 20
    host, found = timing.begin(options), []
    ways = list(product(PRECISIONS, (True, False), (False, True) if options.compile else (False,)))
    data = random_data(steps * options.batch)
    for name in options.networks or (["resnet20"] if options.quick else NETWORKS):
        for size, model in networks(name).items():
            runtimes = (RuntimeConfig(precision=p, channels_last=c, compile=e) for p, c, e in ways)
            trained = [Way(model, data, options.batch, runtime) for runtime in runtimes]
            found += rows(name, size, options.batch, measure(trained, rounds))
    timing.write(options, host, found)


if __name__ == "__main__":
    main()
