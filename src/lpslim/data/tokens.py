"""Texts as token ids, batched by length and padded to the longest of a batch, as Transformers does both.

A batch is one int64 tensor (B, 3, L): token ids, attention mask (1 where there is a token), token types
(0 for the first text of a pair, 1 for the second).
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler

from lpslim.data.splits import WHOLE, Batch, Share, Split

READING = {"batches": "transformers.LengthGroupedSampler"}  # for keys: another order is another result
PARTS = ("input_ids", "attention_mask", "token_type_ids")
EVAL_TOKENS = 16_384  # bounds the memory of an evaluation batch at any length


@dataclass(frozen=True)
class TextSplit(Split):
    """A split held whole in memory; its batches lie where its labels do.

    texts: of each, ``input_ids`` and ``token_type_ids``, int32. labels: (N,) int64, of a regression float32.
    tokenizer: pads the texts of a batch, as transformers' DataCollatorWithPadding asks it to.
    """

    texts: Sequence[Mapping[str, np.ndarray]]
    labels: Tensor
    tokenizer: Any

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> list[int]:
        """Number of tokens of every text."""
        return [len(text["input_ids"]) for text in self.texts]

    def take(self, rows: Tensor) -> Self:
        """Return the texts of these numbers, in this order."""
        return type(self)([self.texts[i] for i in rows.tolist()], self.labels[rows], self.tokenizer)

    def train_batches(self, batch_size: int, seed: int, share: Share = WHOLE) -> Iterator[Batch]:
        """Yield one epoch of whole batches, each of texts of about the same length, by a CPU generator."""
        from transformers.trainer_pt_utils import LengthGroupedSampler  # takes seconds

        size, generator = min(batch_size, len(self)), torch.Generator().manual_seed(seed)
        order = LengthGroupedSampler(size, lengths=self.lengths, generator=generator)
        for rows in BatchSampler(order, size, drop_last=True):
            yield self._batch(rows[share.of(size)])

    def eval_batches(self, batch_size: int, share: Share = WHOLE) -> Iterator[Batch]:
        """Yield the share's texts, of all lengths, the shortest first, at most EVAL_TOKENS tokens a batch."""
        lengths = torch.tensor(self.lengths)
        rest = lengths.argsort(stable=True)[share.rank :: share.world]
        while len(rest):
            longest = lengths[rest[:batch_size]]
            fitting = longest * torch.arange(1, len(longest) + 1) <= EVAL_TOKENS
            taken = max(1, int(fitting.sum()))
            yield self._batch(rest[:taken].tolist())
            rest = rest[taken:]

    def _batch(self, rows: list[int]) -> Batch:
        from transformers import DataCollatorWithPadding

        padded = DataCollatorWithPadding(self.tokenizer)([dict(self.texts[i]) for i in rows])
        inputs: Tensor = torch.stack([padded[part] for part in PARTS], dim=1)  # (B, 3, L)
        return inputs.to(self.labels.device), self.labels[rows]


def pack(encoded: Mapping[str, Any], labels: Tensor, tokenizer: Any) -> TextSplit:
    """Return the split of a tokenizer's output: ``input_ids`` and ``token_type_ids``."""
    pairs = zip(encoded["input_ids"], encoded["token_type_ids"], strict=True)
    texts = [{"input_ids": np.array(ids, np.int32), "token_type_ids": np.array(types, np.int32)}
             for ids, types in pairs]  # fmt: skip
    return TextSplit(texts, labels, tokenizer)


def fingerprint(*splits: TextSplit) -> str:
    """Return a hash of token ids, types, lengths and labels."""
    contents = hashlib.sha256()
    for split in splits:
        for part in ("input_ids", "token_type_ids"):
            contents.update(b"".join(text[part].tobytes() for text in split.texts))
        contents.update(np.cumsum([0, *split.lengths], dtype=np.int64).tobytes())
        contents.update(split.labels.numpy().tobytes())
    return contents.hexdigest()
