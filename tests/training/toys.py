"""Toy data and networks, trained in a moment under any callback."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from lpslim.data.images import TensorSplit, image_data
from lpslim.data.splits import WHOLE, Data
from lpslim.pruning.budget import candidates
from lpslim.pruning.graph import Graph
from lpslim.pruning.units import Prunable
from lpslim.sparsity.penalties.lp import Lp
from lpslim.training import distributed
from lpslim.training.callbacks import Callback, ChannelADMM, MaskKeeper
from lpslim.training.checkpoint import Checkpoint
from lpslim.training.loop import fit
from lpslim.training.regularizers import admm
from lpslim.training.schedule import RuntimeConfig, TrainConfig

CPU = RuntimeConfig(device="cpu", precision="fp32", threads=1)
SEED, STAGE, STEPS = 3, "toy", 4  # steps in an epoch


class KilledError(Exception):
    """Stands for a kill: nothing of the program's catches it."""


class Killing(Checkpoint):
    """Checkpoint after every step, which kills the training where one save more than ``left`` is due."""

    def __init__(self, stage_folder, left):
        super().__init__(stage_folder, 0)
        self.left = left

    def save(self, state):
        if not self.left:
            raise KilledError
        self.left -= 1
        super().save(state)


class Noisy(TensorSplit):
    """Split whose batches draw from the global generator, as augmentation image by image does."""

    def train_batches(self, batch_size, seed, share=WHOLE):
        for inputs, labels in super().train_batches(batch_size, seed, share):
            yield inputs + torch.rand_like(inputs), labels


class Broken(nn.Module):
    """Gives no numbers from one of its calls on; in one process alone if there are several."""

    def __init__(self, at, rank=0):
        super().__init__()
        self.inner = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
        self.calls, self.at, self.rank = 0, at, rank

    def forward(self, images):
        self.calls += 1
        broken = self.calls >= self.at and distributed.share().rank == self.rank
        return self.inner(images) * (float("nan") if broken else 1)


def data(noisy: bool = False) -> Data:
    """Return 32 training images (1, 4, 4) of two classes: four batches of eight."""
    images = torch.randint(256, (40, 4, 4, 1), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    labelled = images, torch.arange(40) % 2
    settings = SimpleNamespace(name="toy", val_fraction=0.2, crop_padding=1, flip=True)
    made = image_data(settings, "made here", "0" * 64, 2, labelled, labelled)
    return replace(made, train=Noisy(**vars(made.train))) if noisy else made


def network(dropout: float = 0.0) -> nn.Sequential:
    """Return the same network every time."""
    torch.manual_seed(0)
    convolution = (nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    return nn.Sequential(*convolution, nn.Dropout(dropout), nn.Linear(16, 2))


def trained(
    join: Callable[[nn.Module], Callback] = lambda model: Callback(), *, model: nn.Module | None = None,
    source: Data | None = None, runtime: RuntimeConfig = CPU, checkpoint: Checkpoint | None = None,
    dropout: float = 0.0, **config: object,
) -> tuple[nn.Module, list[dict[str, float]], Callback]:  # fmt: skip
    """Train for three epochs; return the network, the rows without their seconds, and the callback."""
    model = network(dropout) if model is None else model
    callback, chosen = join(model), TrainConfig(**{"epochs": 3, "batch_size": 8, "lr": 0.05, **config})
    rows = fit(model, source or data(), chosen, runtime, seed=SEED, stage=STAGE, callback=callback,
               checkpoint=checkpoint)  # fmt: skip
    return model, [{k: v for k, v in row.items() if k != "seconds"} for row in rows], callback


def sparse(model: nn.Module) -> Callback:
    """Return an ADMM that some weights of the toy network give in to."""
    return admm.build(model, Lp(p=5, M=1), lamb=1e-2, rho=1e-1, form="squared", updates_per_epoch=2)


def channels(model: nn.Module, **options: Any) -> ChannelADMM:
    """Return an ADMM on the channels of the convolution, of which one of four is to stay."""
    image = torch.zeros(1, 1, 4, 4)
    units = Graph(model, image).units([Prunable("0")])
    free = candidates(model, image, units, adjust=0, floor=0)
    chosen = {"ratio": 0.75, "epochs": 3, "updates_per_epoch": 2, "ramp": 0.4, "candidates": free, **options}
    return ChannelADMM(model, image, **chosen)


def masked(model: nn.Module) -> Callback:
    """Set half of the weights to zero, and keep them there."""
    with torch.no_grad():
        for weight in (model[0].weight, model[-1].weight):
            weight.mul_(weight.abs() > weight.abs().median())
    return MaskKeeper(model)


def same(one: nn.Module, other: nn.Module) -> bool:
    """Return whether two networks have the same bits."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)
