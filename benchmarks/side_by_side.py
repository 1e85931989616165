"""Trainings side by side on one device: what several of them do together, beside one alone.

    python benchmarks/side_by_side.py --quick
    python benchmarks/side_by_side.py --networks resnet56 --at-once 1 2 3 4 8

Each training is a process of its own, as the jobs of a sweep with ``hydra/launcher=joblib`` are: all on one
GPU, or on a CPU with the cores shared out. They begin together, each does the same number of the suite's own
steps on random images of 32x32, and their images are counted over the time from the first one's begin to the
last one's end. The numbers of trainings take turns; medians over the rounds, quartiles in brackets. Above
``ratio`` 1, the device has more done by several at once than by one after the other. On a CPU a process never
has less than one thread, so more of them than threads only share. Five minutes on two CPU cores, one with
--quick.
"""

from __future__ import annotations

import argparse
import time
from multiprocessing.connection import Connection
from typing import Any

import timing
import torch
from timing import Spread
from torch import multiprocessing
from training_step import Block

from lpslim.training.schedule import PRECISIONS, Trainer

WARM = 2
SPAWN = multiprocessing.get_context("spawn")  # CUDA does not survive a fork


def work(asks: Connection, network: str, batch: int, precision: str) -> None:
    """Train when asked to: (threads, steps) begins the warm-up, anything more the steps; None ends."""
    step = Block(network, batch, Trainer(precision=precision, threads=1))
    while asked := asks.recv():
        threads, steps = asked
        torch.set_num_threads(threads)
        for _ in range(WARM):
            step()
        asks.send("ready")
        asks.recv()
        began = time.monotonic()
        for _ in range(steps):
            step()
        asks.send((began, time.monotonic(), steps * step.images))  # a clock that all processes share


def together(workers: list[Connection], threads: int, steps: int) -> float:
    """Return the images per second of all, from the first one's begin to the last one's end."""
    for worker in workers:
        worker.send((threads, steps))
    for worker in workers:
        worker.recv()
    for worker in workers:
        worker.send("go")
    begins, ends, images = zip(*(worker.recv() for worker in workers), strict=True)
    return sum(images) / (max(ends) - min(begins))


def measure(network: str, options: argparse.Namespace, rounds: int, steps: int) -> list[dict[str, Any]]:
    """Return a row for each number of trainings at once."""
    asks, processes = [], []
    for _ in range(max(options.at_once)):
        mine, theirs = SPAWN.Pipe()
        arguments = (theirs, network, options.batch, options.precision)
        processes.append(SPAWN.Process(target=work, args=arguments, daemon=True))
        processes[-1].start()
        asks.append(mine)
    rates: dict[int, list[float]] = {count: [] for count in options.at_once}
    threads = {count: max(1, options.threads // count) for count in options.at_once}
    for done in range(rounds):
        start = done % len(options.at_once)
        for count in options.at_once[start:] + options.at_once[:start]:
            rates[count].append(together(asks[:count], threads[count], steps))
    for worker in asks:
        worker.send(None)
    for process in processes:
        process.join()
    alone = rates[options.at_once[0]]
    return [
        {
            "network": network,
            "batch": options.batch,
            "precision": options.precision,
            "at_once": count,
            "threads_each": threads[count],
            "images_per_second": Spread.of(found),
            "ratio": Spread.of(a / b for a, b in zip(found, alone, strict=True)),
        }
        for count, found in rates.items()
    ]


def show(row: dict[str, Any]) -> None:
    """Print a row."""
    print(
        f"{row['network']}, {row['at_once']} at once, {row['threads_each']} threads each: "
        f"{row['images_per_second'].median:8.0f} images/s together   ratio {row['ratio']}"
    )


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = timing.parser(__doc__, "side_by_side")
    parser.add_argument("--networks", nargs="+", choices=("resnet20", "resnet56"), metavar="NAME")
    parser.add_argument("--at-once", nargs="+", type=int, default=[1, 2, 4], metavar="K")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--precision", choices=PRECISIONS, default="no")
    parser.add_argument("--rounds", type=int, help="default: 7; 3 with --quick")
    return parser.parse_args()


def main() -> None:
    """Measure, print and write."""
    options = parse()
    host, rows = timing.begin(options), []
    for network in options.networks or (("resnet20",) if options.quick else ("resnet20", "resnet56")):
        found = measure(
            network, options, options.rounds or (3 if options.quick else 7), 5 if options.quick else 10
        )
        for row in found:
            show(row)
        rows += found
    timing.write(options, host, rows)


if __name__ == "__main__":
    main()
