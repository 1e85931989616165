"""Token batches: every text once, padded no further than needed, in batches of like lengths."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from lpslim.data import tokens
from lpslim.data.tokens import fingerprint, pack
from lpslim.models import encoders

texts = st.lists(st.lists(st.integers(5, 99), min_size=1, max_size=12), min_size=1, max_size=30)


def packed(ids, labels=None):
    types = [[i % 2 for i in range(len(text))] for text in ids]
    labels = torch.arange(len(ids)) if labels is None else labels
    return pack({"input_ids": ids, "token_type_ids": types}, labels, encoders.tokenizer("tiny"))


def unpacked(batch):
    """Return the token ids of a batch by label; no row may be longer than the longest text."""
    inputs, labels = batch
    lengths = inputs[:, 1].sum(dim=1)
    assert inputs.shape[2] == lengths.max()
    return {int(label): row[0, :n].tolist() for row, n, label in zip(inputs, lengths, labels, strict=True)}


@given(texts, st.integers(1, 8))
def test_evaluation_gives_every_text_once_and_whole(ids, size):
    shown = {}
    for batch in packed(ids).eval_batches(size):
        assert len(batch[1]) <= size
        shown |= unpacked(batch)
    assert shown == dict(enumerate(ids))


@given(texts, st.integers(1, 8), st.integers(0, 9))
def test_an_epoch_gives_full_batches_and_no_text_twice(ids, size, seed):
    size = min(size, len(ids))
    batches = list(packed(ids).train_batches(size, seed))
    assert [len(labels) for _, labels in batches] == [size] * (len(ids) // size)
    drawn = [label for _, labels in batches for label in labels.tolist()]
    assert len(set(drawn)) == len(drawn)
    assert all(ids[label] == text for batch in batches for label, text in unpacked(batch).items())


def test_padding_is_masked_and_has_id_and_type_zero():
    ((inputs, labels),) = packed([[7, 8, 9], [5]]).eval_batches(2)
    assert labels.tolist() == [1, 0]  # the shortest first
    assert inputs[0].tolist() == [[5, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert inputs[1].tolist() == [[7, 8, 9], [1, 1, 1], [0, 1, 0]]


def test_the_seed_alone_decides_the_order():
    split = packed([[i] * (1 + i % 7) for i in range(5, 60)])
    torch.manual_seed(0)
    one, again, other = ([t.tolist() for _, t in split.train_batches(4, seed)] for seed in (1, 1, 2))
    assert one == again != other
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(0)))


def test_batches_are_of_like_lengths():
    lengths = torch.randint(1, 101, (1600,), generator=torch.Generator().manual_seed(0)).tolist()
    batches = packed([[5] * n for n in lengths]).train_batches(16, 0)
    padded = sum(inputs[:, 0].numel() for inputs, _ in batches)
    assert padded < 1.1 * sum(lengths)  # shuffled, nearly twice as much


def test_an_evaluation_batch_is_bounded_in_tokens(monkeypatch):
    monkeypatch.setattr(tokens, "EVAL_TOKENS", 20)
    sizes = [tuple(inputs.shape[::2]) for inputs, _ in packed([[5] * 8] * 5 + [[5] * 30]).eval_batches(500)]
    assert sizes == [(2, 8), (2, 8), (1, 8), (1, 30)]


def test_texts_are_taken_whole_and_in_order():
    whole = packed([[5 + i] * (1 + i % 3) for i in range(9)])
    taken = whole.take(torch.tensor([7, 2]))
    assert taken.labels.tolist() == [7, 2]
    assert unpacked(*taken.eval_batches(9)) == {7: [12, 12], 2: [7, 7, 7]}


def test_the_fingerprint_sees_ids_types_lengths_and_labels():
    def made(ids, types, labels):
        return fingerprint(pack({"input_ids": ids, "token_type_ids": types}, torch.tensor(labels), None))

    ids, types, labels = [[5, 6], [7]], [[0, 0], [0]], [0, 1]
    hashes = [made(ids, types, labels), made([[5, 9], [7]], types, labels), made(ids, [[0, 1], [0]], labels),
              made([[5], [6, 7]], [[0], [0, 0]], labels), made(ids, types, [1, 1])]  # fmt: skip
    assert len(set(hashes)) == 5
    # stored results depend on it
    assert hashes[0] == "28e73e931bdec787e2bc228493f281ca3ba13a59b5b6bef709766010b08dc524"
