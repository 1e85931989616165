"""Texts as token ids: packed, batched by length, padded no further than the longest of a batch.

A batch is one int64 tensor (B, 3, L): token ids, attention mask (1 where there is a token), token
types (0 for the first text of a pair, 1 for the second).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lpslim.data.splits import WHOLE, Batch, Parts, Share, hold_out

POOL = 50  # batches that are sorted by length together: wider ones pad less, but shuffle less
EVAL_TOKENS = 16_384  # bounds an evaluation batch's memory whatever the lengths


@dataclass(frozen=True)
class TextSplit:
    """A split held whole in memory (or on the accelerator), without padding.

    ids, types: (total,) int32, all texts one after the other; text i is ``starts[i]:starts[i + 1]``.
    labels: (N,) int64, or float32 where the task is a number.
    """

    ids: Tensor
    types: Tensor
    starts: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def typical_shape(self) -> tuple[int, int]:
        """The shape (3, L) of a text of mean length."""
        return 3, round(len(self.ids) / len(self))

    def to(self, device: torch.device) -> TextSplit:
        """Return the same split with its tensors on ``device``."""
        fields = ("ids", "types", "starts", "labels")
        return replace(self, **{name: getattr(self, name).to(device) for name in fields})

    def train_batches(self, batch_size: int, seed: int, share: Share = WHOLE) -> Iterator[Batch]:
        """Yield one epoch of shuffled batches, each of texts of about the same length.

        Texts are drawn into pools, sorted by length inside a pool and cut into batches, which come in
        random order. All draws come from a CPU generator with ``seed``. What is left over after the
        last whole batch is left out; another epoch draws other texts.
        """
        generator = torch.Generator().manual_seed(seed)
        size = min(batch_size, len(self))
        order = torch.randperm(len(self), generator=generator)[: len(self) // size * size]
        lengths = self.starts.diff().cpu()
        batches: list[Tensor] = []
        for pool in torch.split(order, POOL * size):
            batches += torch.split(pool[lengths[pool].argsort(stable=True)], size)
        for i in torch.randperm(len(batches), generator=generator).tolist():
            yield self._batch(batches[i][share.of(size)])

    def eval_batches(self, batch_size: int, share: Share = WHOLE) -> Iterator[Batch]:
        """Yield the share's texts once, the shortest first, at most ``batch_size`` or so many tokens a time.

        Every process gets texts of all lengths.
        """
        lengths = self.starts.diff().cpu()
        rest = lengths.argsort(stable=True)[share.rank :: share.world]
        while len(rest):
            longest = lengths[rest[:batch_size]]
            fits = int((longest * torch.arange(1, len(longest) + 1) <= EVAL_TOKENS).sum())
            taken = max(1, fits)
            yield self._batch(rest[:taken])
            rest = rest[taken:]

    def _batch(self, index: Tensor) -> Batch:
        index = index.to(self.ids.device)
        starts, ends = self.starts[index], self.starts[index + 1]
        position = torch.arange(int((ends - starts).max()), device=index.device)
        inside = position < (ends - starts)[:, None]  # (B, L)
        where = (starts[:, None] + position).where(inside, 0)
        ids, types = (values[where].long() * inside for values in (self.ids, self.types))
        return torch.stack((ids, inside.long(), types), dim=1), self.labels[index]


def pack(encoded: Any, labels: Tensor) -> TextSplit:
    """Return the split of what a tokenizer made of texts: ``input_ids`` and ``token_type_ids``.

    Padding has id 0 in a batch, whatever the tokenizer calls it: the mask hides it.
    """
    ids: Sequence[Sequence[int]] = encoded["input_ids"]
    types: Sequence[Sequence[int]] = encoded["token_type_ids"]
    starts = torch.tensor([0, *map(len, ids)]).cumsum(0)
    return TextSplit(_flat(ids), _flat(types), starts, labels)


def _flat(values: Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor([value for each in values for value in each], dtype=torch.int32)


def subset(split: TextSplit, index: Tensor) -> TextSplit:
    """Return the texts of ``index`` (n,), in its order."""
    lengths = split.starts.diff()[index]
    starts = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    texts = [slice(int(split.starts[i]), int(split.starts[i + 1])) for i in index]
    ids, types = (torch.cat([values[part] for part in texts]) for values in (split.ids, split.types))
    return TextSplit(ids, types, starts, split.labels[index])


def fingerprint(*splits: TextSplit) -> str:
    """Return a hash of token ids, types, lengths and labels."""
    contents = hashlib.sha256()
    for split in splits:
        for tensor in (split.ids, split.types, split.starts, split.labels):
            contents.update(tensor.numpy().tobytes())
    return contents.hexdigest()


def splits(train: TextSplit, test: TextSplit, val_fraction: float) -> Parts:
    """Return ``train``, ``val`` and ``test``; validation texts come out of the training set."""
    fitted, held = hold_out(len(train), val_fraction)
    return {"train": subset(train, fitted), "val": subset(train, held), "test": test}
