"""Texts as token ids: packed, batched by length, padded no further than the longest of a batch.

A batch is one int64 tensor (B, 3, L): token ids, attention mask (1 where there is a token), token types
(0 for the first text of a pair, 1 for the second).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lpslim.data.splits import WHOLE, Batch, Parts, Share, hold_out

POOL = 50  # batches that are sorted by length together: larger pools pad less, but shuffle less
EVAL_TOKENS = 16_384  # bounds the memory of an evaluation batch at any length


@dataclass(frozen=True)
class TextSplit:
    """A split held whole in memory, or on the accelerator, without padding.

    ids, types: (total,) int32, texts one after the other. starts, lengths: (N,) int64, where each text
    begins, and its tokens. labels: (N,) int64, of a regression float32.
    """

    ids: Tensor
    types: Tensor
    starts: Tensor
    lengths: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> TextSplit:
        """Return the same split with its tensors on ``device``."""
        fields = ("ids", "types", "starts", "lengths", "labels")
        return replace(self, **{name: getattr(self, name).to(device) for name in fields})

    def train_batches(self, batch_size: int, seed: int, share: Share = WHOLE) -> Iterator[Batch]:
        """Yield one epoch of batches in random order, each of texts of about the same length.

        Texts are drawn into pools, sorted by length inside a pool and cut into batches, by a CPU generator
        with ``seed``. Those left over after the last whole batch are left out.
        """
        generator = torch.Generator().manual_seed(seed)
        size = min(batch_size, len(self))
        order = torch.randperm(len(self), generator=generator)[: len(self) // size * size]
        lengths = self.lengths.cpu()
        batches: list[Tensor] = []
        for pool in torch.split(order, POOL * size):
            batches += torch.split(pool[lengths[pool].argsort(stable=True)], size)
        for i in torch.randperm(len(batches), generator=generator).tolist():
            yield self._batch(batches[i][share.of(size)])

    def eval_batches(self, batch_size: int, share: Share = WHOLE) -> Iterator[Batch]:
        """Yield the share's texts, of all lengths, the shortest first, at most EVAL_TOKENS tokens a batch."""
        lengths = self.lengths.cpu()
        rest = lengths.argsort(stable=True)[share.rank :: share.world]
        while len(rest):
            longest = lengths[rest[:batch_size]]
            fitting = (longest * torch.arange(1, len(longest) + 1) <= EVAL_TOKENS).sum()
            taken = max(1, int(fitting))
            yield self._batch(rest[:taken])
            rest = rest[taken:]

    def _batch(self, index: Tensor) -> Batch:
        index = index.to(self.ids.device)  # (B,)
        starts, lengths = self.starts[index, None], self.lengths[index, None]
        position = torch.arange(int(lengths.max()), device=index.device)
        mask = position < lengths  # (B, L)
        where = (starts + position).where(mask, 0)
        ids, types = (values[where].long() * mask for values in (self.ids, self.types))
        return torch.stack((ids, mask.long(), types), dim=1), self.labels[index]


def pack(encoded: Any, labels: Tensor) -> TextSplit:
    """Return the split of a tokenizer's output: ``input_ids`` and ``token_type_ids``.

    Padding has id 0 in a batch, whatever the tokenizer calls it: the mask hides it.
    """
    lengths = torch.tensor([len(text) for text in encoded["input_ids"]])
    ids, types = (
        torch.tensor([token for text in encoded[name] for token in text], dtype=torch.int32)
        for name in ("input_ids", "token_type_ids")
    )
    return TextSplit(ids, types, lengths.cumsum(0) - lengths, lengths, labels)


def fingerprint(*packed: TextSplit) -> str:
    """Return a hash of token ids, types, lengths and labels of packed splits."""
    contents = hashlib.sha256()
    for split in packed:
        bounds = torch.cat([split.starts, split.starts[-1:] + split.lengths[-1:]])
        for tensor in (split.ids, split.types, bounds, split.labels):
            contents.update(tensor.numpy().tobytes())
    return contents.hexdigest()


def subset(split: TextSplit, index: Tensor) -> TextSplit:
    """Return the texts of ``index`` (n,), in its order; they share the packed tokens."""
    fields = ("starts", "lengths", "labels")
    return replace(split, **{name: getattr(split, name)[index] for name in fields})


def splits(train: TextSplit, test: TextSplit, val_fraction: float) -> Parts:
    """Return ``train``, ``val`` and ``test``; validation texts come out of the training set."""
    fitted, held = hold_out(len(train), val_fraction)
    return {"train": subset(train, fitted), "val": subset(train, held), "test": test}
