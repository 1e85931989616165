"""Time and memory that the ADMM adds to a training step, beside the loss loop of the released code.

    python benchmarks/admm_overhead.py --quick
    python benchmarks/admm_overhead.py --networks vgg16 --batch 64

Four steps take turns in one process: one without a penalty, one with lpslim's (its gradient added after the
backward pass), one with its ADMM on channels (a pull after the optimiser's step), and one with the released
code's loop restated: rho/2 * ||W - Z + U|| in the loss, tensor by tensor, through autograd, with W, Z and U
kept apart. Ratios: medians over the rounds, quartiles in brackets.

``inside`` is the time of the penalty's gradient over that of the rest of the same step. ``memory`` is what
outlives a step (Z and V, or Z and U), ``peak`` the most bytes of tensors alive inside it beyond the plain
step's, both in copies of the regularised parameters. Images of 32x32; ResNet-50: of 64x64, in batches of 16.
Five minutes on two CPU cores, two with --quick.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import timing
import torch
import torch.nn.functional as F
from timing import Spread
from torch import Tensor

from lpslim.models import family
from lpslim.pruning.units import regularised_weights
from lpslim.sparsity.admm import ADMM
from lpslim.sparsity.penalties.lp import Lp
from lpslim.training.callbacks import ChannelADMM

LAMB, RHO = 1e-4, 1.5e-3
KINDS = ("ours", "channels", "released")


@dataclass(frozen=True)
class Network:
    """A network's family and the images it is measured on. image: side in pixels."""

    family: str
    image: int
    batch: int
    classes: int = 10


NETWORKS = {
    "resnet56": Network("resnet_cifar", 32, 256),
    "vgg16": Network("vgg", 32, 256),
    "resnet50": Network("torchvision", 64, 16, classes=1000),
}


class Plain:
    """A training step without a penalty."""

    def __init__(self, name: str, batch: int) -> None:
        torch.manual_seed(0)
        network = NETWORKS[name]
        device = "cuda" if torch.cuda.is_available() else "cpu"
        kind = family.get(network.family)
        shape = (3, network.image, network.image)
        model = kind.build(name, num_classes=network.classes, **kind.arguments(name, shape))
        self.model = model.to(device).to(memory_format=torch.channels_last)
        self.weights = list(regularised_weights(model).values())
        self.optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, weight_decay=5e-4, foreach=True)
        images = torch.randn(batch, *shape, device=device)
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.labels = torch.randint(network.classes, (batch,), device=device)
        self.state: list[Tensor] = []

    def loss(self) -> Tensor:
        """Return the loss (0-d)."""
        return F.cross_entropy(self.model(self.images), self.labels)

    def after_backward(self) -> None:
        """Hook between the backward pass and the optimiser's step."""

    def __call__(self) -> None:
        """Do one step."""
        self.loss().backward()
        self.after_backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


class Ours(Plain):
    """A step of lpslim: one fused pass over the gradients."""

    def __init__(self, name: str, batch: int) -> None:
        super().__init__(name, batch)
        self.admm = ADMM(self.weights, Lp(5.0, 1.0), lamb=LAMB, rho=RHO)
        self.state = [*self.admm.Z, *self.admm.V]
        self.spent: list[float] = []

    def after_backward(self) -> None:
        """Add the penalty's gradient, and note how long that took."""
        self.spent.append(timing.seconds(self.admm.add_gradient))


class Channels(Plain):
    """A step of the ADMM on channels: one pass over what produces channels."""

    def __init__(self, name: str, batch: int) -> None:
        super().__init__(name, batch)
        self.regularizer = ChannelADMM(self.model, self.images[:1], target_flops=0.3, epochs=1)
        self.regularizer.begin()
        self.admm = self.regularizer.admm
        self.weights, self.state = self.admm.weights, list(self.admm.state_dict().values())
        self.admm.pull(0.01)

    def __call__(self) -> None:
        """Do one step."""
        super().__call__()
        self.admm.step()


class Released(Plain):
    """A step of the released code as far as its penalty goes."""

    def __init__(self, name: str, batch: int) -> None:
        super().__init__(name, batch)
        self.Z = [w.detach().clone() for w in self.weights]
        self.U = [torch.zeros_like(z) for z in self.Z]
        self.state = [*self.Z, *self.U]

    def loss(self) -> Tensor:
        """Return the loss with a norm for every tensor (0-d)."""
        norms = ((w - z + u).norm() for w, z, u in zip(self.weights, self.Z, self.U, strict=True))
        return super().loss() + 0.5 * RHO * torch.stack(list(norms)).sum()


def measure(name: str, batch: int, rounds: int) -> dict[str, Any]:
    """Return one row of figures; copies are those of the regularised parameters."""
    ours = Ours(name, batch)
    steps = {"plain": Plain(name, batch), "ours": ours, "channels": Channels(name, batch),
             "released": Released(name, batch)}  # fmt: skip
    times = timing.in_turn(steps, rounds)
    inside = ours.spent[-rounds:]
    peaks = {kind: timing.peak_bytes(step) for kind, step in steps.items()}
    row = {
        "network": name,
        "image": NETWORKS[name].image,
        "batch": batch,
        "weights": sum(w.numel() for w in ours.weights),
        "step_ms": Spread.of(1e3 * t for t in times["plain"]),
        "update_ms": Spread.of(1e3 * timing.seconds(ours.admm.update) for _ in range(rounds)),
        "inside": Spread.of(a / (b - a) for a, b in zip(inside, times["ours"], strict=True)),
    }
    for kind in KINDS:
        copy = timing.nbytes(steps[kind].weights)
        row[f"{kind}_ratio"] = timing.ratio(times, kind, over="plain")
        row[f"{kind}_memory"] = timing.nbytes(steps[kind].state) / copy
        row[f"{kind}_peak"] = (peaks[kind] - peaks["plain"]) / copy
    return row


def show(row: dict[str, Any]) -> None:
    """Print a row."""
    print(f"\n{row['network']}, batch {row['batch']}, {row['image']} px: {row['step_ms']} ms a step, "
          f"{row['update_ms']} ms an update, gradient {100 * row['inside'].median:.2f} %")  # fmt: skip
    for kind in KINDS:
        print(f"  {kind:<9} time x {row[f'{kind}_ratio']}   memory {row[f'{kind}_memory']:.2f} copies, "
              f"peak +{row[f'{kind}_peak']:.2f}")  # fmt: skip


def main() -> None:
    """Measure, print and write."""
    parser = timing.parser(__doc__, "admm_overhead")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME")
    parser.add_argument("--batch", type=int, help="default: 256; 16 for ResNet-50")
    options = parser.parse_args()
    host, rows = timing.begin(options), []
    for name in options.networks:
        rows.append(measure(name, options.batch or NETWORKS[name].batch, 3 if options.quick else 9))
        show(rows[-1])
    timing.write(options, host, rows)


if __name__ == "__main__":
    main()
