"""Texts as token ids, batched by length, padded no further than the longest of a batch.

A batch is one int64 tensor (B, 3, L): token ids, attention mask (1 where there is a token), token types
(0 for the first text of a pair, 1 for the second).
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lpslim.data.splits import WHOLE, Batch, Share, Split

POOL = 50  # batches that are sorted by length together: larger pools pad less, but shuffle less
EVAL_TOKENS = 16_384  # bounds the memory of an evaluation batch at any length


@dataclass(frozen=True)
class TextSplit(Split):
    """A split held whole in memory, or on the accelerator.

    ids, types: (N, longest) int32, padded with 0, whatever the tokenizer calls it: the mask hides it.
    lengths: (N,) int64, in tokens. labels: (N,) int64, of a regression float32.
    """

    ids: Tensor
    types: Tensor
    lengths: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Tensor) -> Self:
        """Return the texts of these numbers, in this order."""
        return type(self)(self.ids[rows], self.types[rows], self.lengths[rows], self.labels[rows])

    def train_batches(self, batch_size: int, seed: int, share: Share = WHOLE) -> Iterator[Batch]:
        """Yield one epoch of whole batches in random order, each of texts of about the same length.

        Texts are drawn into pools, and sorted by length inside a pool, by a CPU generator with ``seed``.
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
            fitting = longest * torch.arange(1, len(longest) + 1) <= EVAL_TOKENS
            taken = max(1, int(fitting.sum()))
            yield self._batch(rest[:taken])
            rest = rest[taken:]

    def _batch(self, index: Tensor) -> Batch:
        index = index.to(self.ids.device)  # (B,)
        lengths = self.lengths[index, None]
        longest = int(lengths.max())
        mask = torch.arange(longest, device=index.device) < lengths  # (B, L)
        parts = (self.ids[index, :longest], mask.int(), self.types[index, :longest])
        return torch.stack(parts, dim=1).long(), self.labels[index]


def pack(encoded: Any, labels: Tensor) -> TextSplit:
    """Return the split of a tokenizer's output: ``input_ids`` and ``token_type_ids``."""
    ids = [torch.tensor(text, dtype=torch.int32) for text in encoded["input_ids"]]
    types = [torch.tensor(text, dtype=torch.int32) for text in encoded["token_type_ids"]]
    lengths = torch.tensor([len(text) for text in ids])
    return TextSplit(pad_sequence(ids, True), pad_sequence(types, True), lengths, labels)


def fingerprint(*splits: TextSplit) -> str:
    """Return a hash of token ids, types, lengths and labels."""
    contents = hashlib.sha256()
    for split in splits:
        there = torch.arange(split.ids.shape[1]) < split.lengths[:, None]
        ends = split.lengths.cumsum(0)
        for tensor in (split.ids[there], split.types[there], torch.cat((ends[:1] * 0, ends)), split.labels):
            contents.update(tensor.numpy().tobytes())
    return contents.hexdigest()
