"""Packed texts: what a batch holds, and that every text comes once."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lpslim.data import tokens
from lpslim.data.tokens import TextSplit, fingerprint, pack, splits, subset

texts = st.lists(st.lists(st.integers(5, 99), min_size=1, max_size=12), min_size=1, max_size=30)


def packed(ids, labels=None):
    types = [[i % 2 for i in range(len(each))] for each in ids]
    labels = torch.arange(len(ids)) if labels is None else labels
    return pack({"input_ids": ids, "token_type_ids": types}, labels)


def unpacked(batch):
    inputs, labels = batch
    lengths = inputs[:, 1].sum(dim=1)
    return {int(t): row[0, :n].tolist() for row, n, t in zip(inputs, lengths, labels, strict=True)}


@given(texts, st.integers(1, 8))
@settings(deadline=None)
def test_evaluation_gives_every_text_once_and_whole(ids, size):
    found = {}
    for batch in packed(ids).eval_batches(size):
        assert len(batch[1]) <= size
        found |= unpacked(batch)
    assert found == dict(enumerate(ids))


@given(texts, st.integers(1, 8), st.integers(0, 9))
@settings(deadline=None)
def test_an_epoch_gives_whole_batches_and_no_text_twice(ids, size, seed):
    size = min(size, len(ids))
    batches = list(packed(ids).train_batches(size, seed))
    assert len(batches) == len(ids) // size
    assert all(len(labels) == size for _, labels in batches)
    drawn = [int(t) for _, labels in batches for t in labels]
    assert len(set(drawn)) == len(drawn)
    assert all(unpacked(batch)[t] == ids[t] for batch in batches for t in batch[1].tolist())


def test_padding_is_masked_and_has_id_and_type_zero():
    ((inputs, labels),) = packed([[7, 8, 9], [5]]).eval_batches(2)
    assert labels.tolist() == [1, 0]  # the shortest first
    assert inputs[:, 0].tolist() == [[5, 0, 0], [7, 8, 9]]
    assert inputs[:, 1].tolist() == [[1, 0, 0], [1, 1, 1]]
    assert inputs[:, 2].tolist() == [[0, 0, 0], [0, 1, 0]]


def test_the_seed_alone_decides_the_order():
    split = packed([[i] * (1 + i % 7) for i in range(5, 60)])
    once, again, other = (
        [labels.tolist() for _, labels in split.train_batches(4, seed)] for seed in (1, 1, 2)
    )
    assert once == again != other


def test_batches_are_of_like_lengths():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 101, (1600,), generator=generator).tolist()
    split = packed([[5] * n for n in lengths])
    width = sum(inputs.shape[2] * len(inputs) for inputs, _ in split.train_batches(16, 0))
    assert width < 1.05 * sum(lengths)  # shuffled alone, it is nearly twice as much


def test_an_evaluation_batch_is_bounded_in_tokens(monkeypatch):
    monkeypatch.setattr(text, "EVAL_TOKENS", 20)
    sizes = [tuple(inputs.shape[::2]) for inputs, _ in packed([[5] * 8] * 5 + [[5] * 30]).eval_batches(500)]
    assert sizes == [(2, 8), (2, 8), (1, 8), (1, 30)]


def test_a_subset_keeps_texts_and_labels_together():
    part = subset(packed([[5], [6, 7], [8, 9, 9]]), torch.tensor([2, 0]))
    assert part.labels.tolist() == [2, 0]
    assert part.ids.tolist() == [8, 9, 9, 5]
    assert part.starts.tolist() == [0, 3, 4]
    assert part.typical_shape == (3, 2)


def test_validation_texts_come_out_of_the_training_set():
    whole = packed([[5 + i] for i in range(20)])
    parts = splits(whole, whole, 0.25)
    seen = [sorted(parts[name].labels.tolist()) for name in ("train", "val")]
    assert list(map(len, seen)) == [15, 5]
    assert sorted(seen[0] + seen[1]) == list(range(20))
    assert parts["test"] is whole


@pytest.mark.parametrize("field", ["ids", "types", "starts", "labels"])
def test_the_fingerprint_sees_every_field(field):
    split = packed([[5, 6], [7]])
    fields = {name: getattr(split, name).clone() for name in ("ids", "types", "starts", "labels")}
    assert fingerprint(TextSplit(**fields)) == fingerprint(split)
    fields[field][1] += 1
    assert fingerprint(TextSplit(**fields)) != fingerprint(split)
