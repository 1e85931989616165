"""Data sets: the interface of a split, the shard of one process, and the validation split."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from lpslim.base.errors import UserError
from lpslim.data.metrics import CLASSIFICATION, Task

Batch = tuple[Tensor, Tensor]


class Share(NamedTuple):
    """The shard of process ``rank`` of ``world`` in a batch or a split; all shards hold every sample once."""

    rank: int = 0
    world: int = 1

    def of(self, count: int) -> slice:
        """Return its part of ``count`` samples: equal parts, if the number of processes divides it."""
        return slice(count * self.rank // self.world, count * (self.rank + 1) // self.world)


WHOLE = Share()


@dataclass(frozen=True)
class Split(ABC):
    """A split, in memory or streamed from disk. Inputs are images (B, C, H, W), or tokens (B, 3, L)."""

    @abstractmethod
    def __len__(self) -> int: ...

    def to(self, device: torch.device) -> Self:
        """Return the same split with its tensors, and so its batches, on ``device``."""
        return replace(self, **{n: v.to(device) for n, v in vars(self).items() if isinstance(v, Tensor)})

    def normalised(self, mean: Sequence[float], std: Sequence[float]) -> Self:
        """Return the same images under another normalisation, as :meth:`Data.normalised`."""
        raise UserError("model.weights: need images of another normalisation, which the data set cannot give")

    @abstractmethod
    def train_batches(self, batch_size: int, seed: int, share: Share = WHOLE) -> Iterator[Batch]:
        """Yield one shuffled, augmented epoch of inputs (B, ...) and labels (B,).

        ``batch_size`` is that of all processes together: this one gets its share of every batch.
        """

    @abstractmethod
    def eval_batches(self, batch_size: int, share: Share = WHOLE) -> Iterator[Batch]:
        """Yield every sample of a share of the split once, not augmented, at most ``batch_size`` a batch."""


@dataclass(frozen=True)
class Data:
    """A data set: its splits, its task, and its identity in records.

    source: of the samples; fingerprint: their hash. num_classes: outputs; 1 for a regression. shape: of one
    input, (C, H, W), or (3, greatest length). val: may be empty. reading: what shapes the batches beside the
    fingerprint.
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

    def to(self, device: torch.device) -> Self:
        """Return the same data with every split on ``device``."""
        train, val, test = (split.to(device) for split in (self.train, self.val, self.test))
        return replace(self, train=train, val=val, test=test)

    def normalised(self, mean: Sequence[float], std: Sequence[float]) -> Self:
        """Return the same images under another normalisation: a mean and a deviation per channel.

        Both are of pixels from 0 to 1. UserError for other inputs than images of so many channels.
        """
        if len(self.shape) != 3 or self.shape[0] != len(mean):
            raise UserError(f"model.weights: are for images of {len(mean)} channels, not for {self.shape}")
        train, val, test = (split.normalised(mean, std) for split in (self.train, self.val, self.test))
        reading = {**self.reading, "mean": [*mean], "std": [*std]}
        return replace(self, train=train, val=val, test=test, reading=reading)


def hold_out(count: int, fraction: float) -> tuple[Tensor, Tensor]:
    """Return (training, validation) indices of ``count`` samples, sorted, at least one each.

    With ``fraction`` 0 all are for training. They depend on the arguments alone, not on a run's seed: all
    runs validate on the same samples. UserError if there are fewer than two.
    """
    if not fraction:
        return torch.arange(count), torch.arange(0)
    if count < 2:
        raise UserError(f"dataset: {count} sample to train on; expected at least 2, one for validation")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    held = min(max(1, round(count * fraction)), count - 1)
    return order[held:].sort().values, order[:held].sort().values
