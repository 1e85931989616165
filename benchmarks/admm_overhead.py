"""What the ADMM adds to a training step, and what its Z/U update costs.

Steps with and without the penalty's gradient are timed in turn, pair by pair, in one process, so that a
drifting machine hurts both alike. Prints medians and the ratio's quartiles. About a minute on two CPU cores:

    python benchmarks/admm_overhead.py --model vgg16 --batch 64 --pairs 15
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from lpslim import lookup
from lpslim.admm import ADMM
from lpslim.penalties.lp import Lp
from lpslim.units import regularised_weights

FAMILIES = {"resnet20": "resnet_cifar", "resnet56": "resnet_cifar", "vgg16": "vgg"}


def seconds(work: Callable[[], object]) -> float:
    """Return the wall time of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=FAMILIES, default="resnet20")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=15)
    chosen = parser.parse_args()
    torch.manual_seed(0)
    model = lookup.find("models", FAMILIES[chosen.model]).build(chosen.model, num_classes=10)
    model.to(memory_format=torch.channels_last)
    weights = list(regularised_weights(model).values())
    admm = ADMM(weights, Lp(5.0, 1.0), lamb=1e-4, rho=1.5e-3)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, weight_decay=5e-4, foreach=True)
    images = torch.randn(chosen.batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (chosen.batch,))

    def step(penalise: Callable[[], None]) -> None:
        F.cross_entropy(model(images), labels).backward()
        penalise()
        optimizer.step()
        optimizer.zero_grad()

    def plain() -> None:
        step(lambda: None)

    def penalised() -> None:
        step(admm.add_gradient)

    for work in (plain, penalised, admm.update):
        work()
    pairs = np.array([(seconds(plain), seconds(penalised)) for _ in range(chosen.pairs)])
    updates = np.array([seconds(admm.update) for _ in range(chosen.pairs)])
    low, middle, high = np.percentile(pairs[:, 1] / pairs[:, 0], (25, 50, 75))
    size = sum(w.numel() for w in weights)
    stored = sum(t.untyped_storage().nbytes() for t in (*admm.Z, *admm.V))
    print(
        f"{chosen.model}, batch {chosen.batch}, {size} regularised weights, {torch.get_num_threads()} threads"
    )
    print(f"step without the penalty  {1e3 * np.median(pairs[:, 0]):8.1f} ms")
    print(f"step with it              {1e3 * np.median(pairs[:, 1]):8.1f} ms")
    print(f"ratio, pair by pair       {middle:8.3f}   quartiles {low:.3f} to {high:.3f}")
    print(f"Z/U update, once an epoch {1e3 * np.median(updates):8.1f} ms")
    print(f"memory of Z and V         {stored / (4 * size):8.1f} copies of the weights")


if __name__ == "__main__":
    main()
