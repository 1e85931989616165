"""Data sets: the interface of a split, the shard of one process, and the validation split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypedDict

import torch
from torch import Tensor

from lpslim.base.errors import UserError
from lpslim.data.metrics import CLASSIFICATION, Task

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Share:
    """The shard of one process in a batch or a split; the shards of all hold every sample once.

    rank: number of the process, from 0. world: number of processes.
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

        ``batch_size`` is that of all processes together: this one gets its share of every batch.
        """
        ...

    def eval_batches(self, batch_size: int, share: Share = WHOLE) -> Iterator[Batch]:
        """Yield every sample of a share of the split once, not augmented, at most ``batch_size`` a batch."""
        ...


class Parts(TypedDict):
    """The three splits of a data set."""

    train: Split
    val: Split
    test: Split


@dataclass(frozen=True)
class Data:
    """A data set: its splits, its task, and its identity in records.

    source: where the samples come from. fingerprint: hash of the samples. num_classes: outputs; 1 for a
    regression. shape: of one input, (C, H, W), or (3, L) with L the greatest length. reading: settings
    that shape the batches and that the fingerprint does not cover.
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


def hold_out(count: int, fraction: float) -> tuple[Tensor, Tensor]:
    """Return (training, validation) indices of ``count`` samples, sorted, at least one each.

    They depend on the arguments alone, not on a run's seed: all runs validate on the same samples.

    Raises:
        UserError: there are fewer than two samples.
    """
    if count < 2:
        raise UserError(
            f"dataset: {count} sample to train on; expected at least 2, one of them for validation"
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    held = min(max(1, round(count * fraction)), count - 1)
    return order[held:].sort().values, order[:held].sort().values
