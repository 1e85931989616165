"""What the ADMM adds to a training step, beside the loss loop of the released code.

    python benchmarks/admm_overhead.py --quick
    python benchmarks/admm_overhead.py --networks vgg16 --batch 64

Three steps are done in turn, round by round, in one process, so that a drifting machine hurts all alike:
one without a penalty, one with this suite's (its gradient added after the backward), and one with the
released code's loop restated: the norm rho/2 * ||W - Z + U|| in the loss, tensor by tensor, through
autograd, with W, Z and U kept apart. Ratios are medians over the rounds, quartiles in brackets.

``inside`` is the time of the penalty's gradient over that of the rest of the same step, the better figure
where two steps of the same kind differ by more than it is. ``memory`` is what outlives a step (Z and V, or Z
and U), and ``peak`` the largest sum of tensors alive in a step beyond the plain step's, both in copies of the
regularised weights. Images of 32x32, for ResNet-50 of 64x64 in a batch of 16. Without --quick, and
with the batches of the paper, some five minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import timing
import torch
import torch.nn.functional as F
from timing import Spread
from torch import Tensor, nn

from lpslim.base import registry
from lpslim.pruning.units import regularised_weights
from lpslim.sparsity.admm import ADMM
from lpslim.sparsity.penalties.lp import Lp

LAMB, RHO = 1e-4, 1.5e-3


@dataclass(frozen=True)
class Network:
    """Where a network is, and what it is measured on. image: its side in pixels."""

    family: str
    image: int
    batch: int
    classes: int = 10


NETWORKS = {
    "resnet20": Network("resnet_cifar", 32, 128),
    "resnet56": Network("resnet_cifar", 32, 256),
    "vgg16": Network("vgg", 32, 256),
    "resnet50": Network("resnet_imagenet", 64, 16, classes=1000),
}
GOALS = ("resnet56", "vgg16", "resnet50")


class Plain:
    """A training step without a penalty."""

    def __init__(self, name: str, batch: int) -> None:
        torch.manual_seed(0)
        network = NETWORKS[name]
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = lookup.find("models", network.family).build(name, num_classes=network.classes)
        self.model: nn.Module = model.to(device).to(memory_format=torch.channels_last)
        self.weights = list(regularised_weights(model).values())
        self.optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, weight_decay=5e-4, foreach=True)
        images = torch.randn(batch, 3, network.image, network.image, device=device)
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.labels = torch.randint(network.classes, (batch,), device=device)
        self.state: list[Tensor] = []

    def loss(self) -> Tensor:
        """Return what is differentiated (0-d)."""
        return F.cross_entropy(self.model(self.images), self.labels)

    def after_backward(self) -> None:
        """Do what comes between the backward and the optimiser."""

    def __call__(self) -> None:
        """Do one step."""
        self.loss().backward()
        self.after_backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


class Ours(Plain):
    """A step of the suite: one fused pass over the gradients."""

    def __init__(self, name: str, batch: int) -> None:
        super().__init__(name, batch)
        self.admm = ADMM(self.weights, Lp(5.0, 1.0), lamb=LAMB, rho=RHO)
        self.state = [*self.admm.Z, *self.admm.V]
        self.spent: list[float] = []

    def after_backward(self) -> None:
        """Add the penalty's gradient, and note how long that took."""
        self.spent.append(timing.seconds(self.admm.add_gradient))


class Released(Plain):
    """A step of the released code as far as its penalty goes."""

    def __init__(self, name: str, batch: int) -> None:
        super().__init__(name, batch)
        self.Z = [w.detach().clone() for w in self.weights]
        self.U = [torch.zeros_like(z) for z in self.Z]
        self.state = [*self.Z, *self.U]

    def loss(self) -> Tensor:
        """Return the loss with a norm for every tensor (0-d)."""
        loss = super().loss()
        for w, z, u in zip(self.weights, self.Z, self.U, strict=True):
            loss = loss + 0.5 * RHO * (w - z + u).norm()
        return loss


def measure(name: str, batch: int, rounds: int) -> dict[str, Any]:
    """Return one row of figures; their copies are those of the regularised weights."""
    steps = {"plain": Plain(name, batch), "ours": Ours(name, batch), "released": Released(name, batch)}
    times = timing.in_turn(steps, rounds)
    inside = steps["ours"].spent[-rounds:]
    updates = [timing.seconds(steps["ours"].admm.update) for _ in range(rounds)]
    copy = timing.nbytes(steps["plain"].weights)
    peaks = {kind: timing.peak_bytes(step) / copy for kind, step in steps.items()}
    return {
        "network": name,
        "image": NETWORKS[name].image,
        "batch": batch,
        "weights": sum(w.numel() for w in steps["plain"].weights),
        "step_ms": Spread.of(1e3 * t for t in times["plain"]),
        "update_ms": Spread.of(1e3 * t for t in updates),
        "inside": Spread.of(a / (b - a) for a, b in zip(inside, times["ours"], strict=True)),
        **{f"{kind}_ratio": timing.ratio(times, kind, over="plain") for kind in ("ours", "released")},
        **{f"{kind}_memory": timing.nbytes(steps[kind].state) / copy for kind in ("ours", "released")},
        **{f"{kind}_peak": peaks[kind] - peaks["plain"] for kind in ("ours", "released")},
    }


def show(row: dict[str, Any]) -> None:
    """Print a row."""
    print(
        f"\n{row['network']}, batch {row['batch']}, {row['image']} px, {row['weights']} regularised weights: "
        f"{row['step_ms'].median:.0f} ms a step, {row['update_ms'].median:.1f} ms a Z/U update"
    )
    for kind in ("ours", "released"):
        note = f"   inside {100 * row['inside'].median:.2f} %" if kind == "ours" else ""
        print(
            f"  {kind:<9} time x {row[f'{kind}_ratio']}   memory {row[f'{kind}_memory']:.2f} copies, "
            f"peak +{row[f'{kind}_peak']:.2f}{note}"
        )


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = timing.parser(__doc__, "admm_overhead")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=GOALS, metavar="NAME")
    parser.add_argument("--batch", type=int, help="default: 256; 16 for ResNet-50")
    parser.add_argument("--rounds", type=int, help="default: 9; 3 with --quick")
    return parser.parse_args()


def main() -> None:
    """Measure, print and write."""
    options = parse()
    host, rows = timing.begin(options), []
    for name in options.networks:
        rounds = options.rounds or (3 if options.quick else 9)
        rows.append(measure(name, options.batch or NETWORKS[name].batch, rounds))
        show(rows[-1])
    timing.write(options, host, rows)


if __name__ == "__main__":
    main()
