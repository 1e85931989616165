"""What training and evaluation need of data, whatever the data are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypedDict

import torch
from torch import Tensor

from lpslim.data.metrics import CLASSIFICATION, Task

WORD = 5  # a token that no vocabulary has for padding
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Share:
    """What one of several processes takes of a batch or of a split; together they take each sample once.

    rank: which process, from 0. world: how many there are.
    """

    rank: int = 0
    world: int = 1

    def of(self, count: int) -> slice:
        """Return its part of ``count`` samples: equal parts, if the number of processes divides it."""
        return slice(count * self.rank // self.world, count * (self.rank + 1) // self.world)


WHOLE = Share()


class Split(Protocol):
    """A split, in memory or streamed from disk. Inputs are images (B, C, H, W), or tokens (B, 3, L)."""

    def __len__(self) -> int: ...

    def to(self, device: torch.device) -> Split:
        """Return the same split, its batches on ``device``."""
        ...

    def train_batches(self, batch_size: int, seed: int, share: Share = WHOLE) -> Iterator[Batch]:
        """Yield one shuffled, augmented epoch of inputs (B, ...) and labels (B,).

        ``batch_size`` counts what all processes take together: each gets its share of every batch.
        """
        ...

    def eval_batches(self, batch_size: int, share: Share = WHOLE) -> Iterator[Batch]:
        """Yield every sample of a share of the split once, not augmented; ``batch_size`` at a time."""
        ...


class Parts(TypedDict):
    """The three splits of a data set."""

    train: Split
    val: Split
    test: Split


@dataclass(frozen=True)
class Data:
    """A data set: its splits and what a record must say of it.

    shape: of one input, (C, H, W) or (3, L) with L the longest. num_classes: outputs; 1 for a number.
    reading: settings that shape the batches and that the fingerprint does not cover.
    """

    name: str
    source: str
    fingerprint: str
    num_classes: int
    shape: tuple[int, ...]
    train: Split
    val: Split
    test: Split
    task: Task = CLASSIFICATION
    reading: dict[str, Any] = field(default_factory=dict)

    def to(self, device: torch.device) -> Data:
        """Return the same data with every split on ``device``."""
        moved = {name: getattr(self, name).to(device) for name in ("train", "val", "test")}
        return replace(self, **moved)


def example(shape: tuple[int, ...], batch: int = 1) -> Tensor:
    """Return inputs that a network can be traced with: a black image, or a text without padding."""
    if len(shape) == 3:
        return torch.zeros(batch, *shape)
    tokens = torch.zeros(batch, *shape, dtype=torch.long)
    tokens[:, 0] = WORD
    tokens[:, 1] = 1
    return tokens


def hold_out(count: int, fraction: float) -> tuple[Tensor, Tensor]:
    """Return (train, validation) indices of ``count`` samples, one each at least; the same in every run.

    The split belongs to the data, not to the seed, so that runs can be compared.
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    held = min(max(1, round(count * fraction)), count - 1)
    return order[held:].sort().values, order[:held].sort().values
