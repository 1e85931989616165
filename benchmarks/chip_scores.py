"""CHIP's scores by one eigendecomposition beside c + 1 singular value decompositions.

    python benchmarks/chip_scores.py [--images 2]

The literal form is timed on as many images as --images says, the fast one on 128; times are per image.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from lpslim.pruning.criteria.chip import independence

SHAPES = {  # channels, height
    "ResNet-56, first stage": (16, 32),
    "ResNet-56, last stage": (64, 8),
    "VGG-16, third block": (256, 8),
    "VGG-16, last block": (512, 2),
}
ROUNDS = 3


def literal(maps: Tensor) -> Tensor:
    """Return the channel independence (B, c) of maps (B, c, H, W) as the paper defines it."""
    rows = maps.double().flatten(2)
    whole = torch.linalg.svdvals(rows).sum(dim=1)
    without = []
    for i in range(rows.shape[1]):
        rest = rows.clone()
        rest[:, i] = 0
        without.append(torch.linalg.svdvals(rest).sum(dim=1))
    return whole[:, None] - torch.stack(without, dim=1)


def seconds_per_image(score: Callable[[Tensor], Tensor], maps: Tensor) -> list[float]:
    """Return the time of ROUNDS calls, each divided by the number of images."""
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        score(maps)
        times.append((time.perf_counter() - began) / len(maps))
    return times


def main() -> None:
    """Measure every shape and print one line each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2, help="images that the literal form is timed on")
    images = parser.parse_args().images
    torch.manual_seed(0)
    print(f"{torch.get_num_threads()} CPU threads; ms per image: median (min to max of {ROUNDS})")
    for name, (channels, side) in SHAPES.items():
        maps = torch.randn(128, channels, side, side).relu()
        few = maps[:images]
        error = (literal(few) - independence(few)).abs().max() / few.double().flatten(1).norm(dim=1).max()
        slow, fast = seconds_per_image(literal, few), seconds_per_image(independence, maps)
        ratio = statistics.median(slow) / statistics.median(fast)
        cells = [
            f"{1e3 * statistics.median(t):8.2f} ({1e3 * min(t):.2f} to {1e3 * max(t):.2f})"
            for t in (slow, fast)
        ]
        print(f"{name:<24} c={channels:<4} n={side * side:<5} literal {cells[0]}   one {cells[1]}"
              f"   {ratio:6.0f}x   largest difference {error:.0e} of the norm")  # fmt: skip


if __name__ == "__main__":
    main()
