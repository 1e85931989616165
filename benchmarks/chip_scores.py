"""Time of CHIP's scores by one eigendecomposition beside the paper's c + 1 singular value decompositions.

    python benchmarks/chip_scores.py [--quick]

Times are per image: the fast form is given 128 images, the literal one two. The last column is the largest
difference between the two, over the norm of the maps. Two minutes on two CPU cores, half with --quick.
"""

from __future__ import annotations

import timing
import torch
from timing import Spread
from torch import Tensor

from lpslim.pruning.criteria.chip import independence

SHAPES = {  # channels, height
    "ResNet-56, first stage": (16, 32),
    "ResNet-56, last stage": (64, 8),
    "VGG-16, third block": (256, 8),
    "VGG-16, last block": (512, 2),
}
MANY, FEW = 128, 2


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


def measure(name: str, rounds: int) -> dict[str, object]:
    """Return the times of one shape and the difference of the two forms."""
    channels, side = SHAPES[name]
    maps = torch.randn(MANY, channels, side, side).relu()
    few = maps[:FEW]
    error = (literal(few) - independence(few)).abs().max() / few.double().flatten(1).norm(dim=1).max()
    works = {"literal": lambda: literal(few), "fast": lambda: independence(maps)}
    times = timing.in_turn(works, rounds)
    return {
        "shape": name,
        "literal_ms": Spread.of(1e3 * t / FEW for t in times["literal"]),
        "fast_ms": Spread.of(1e3 * t / MANY for t in times["fast"]),
        "ratio": Spread.of(
            a / FEW / (b / MANY) for a, b in zip(times["literal"], times["fast"], strict=True)
        ),
        "difference": error.item(),
    }


def main() -> None:
    """Measure every shape and print one line each."""
    options = timing.parser(__doc__).parse_args()
    host, rows = timing.begin(options), []
    for name in SHAPES:
        row = measure(name, rounds=1 if options.quick else 3)
        print(f"{name:<23} literal {row['literal_ms']} ms, fast {row['fast_ms']} ms an image, "
              f"{row['ratio']} times, difference {row['difference']:.0e}")  # fmt: skip
        rows.append(row)
    timing.write(options, host, rows)


if __name__ == "__main__":
    main()
