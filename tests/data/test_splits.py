"""Validation splits, and shards: several processes take exactly what one takes, none of it twice."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lpslim.data.datasets.imagefolder import StreamedSplit
from lpslim.data.images import TensorSplit
from lpslim.data.splits import Share, hold_out
from lpslim.data.tokens import pack
from lpslim.models import encoders
from tests.data.making import noise, refusal, write_image

sizes, worlds = st.integers(1, 40), st.integers(1, 5)


def test_validation_is_fixed_and_disjoint_from_training_and_both_hold_a_sample():
    for count, fraction, held in ((100, 0.1, 10), (2, 0.9, 1), (5, 0.001, 1), (3, 0.99, 2)):
        train, val = (rows.tolist() for rows in hold_out(count, fraction))
        assert len(val) == held
        assert sorted(train + val) == list(range(count))
        assert (train, val) == (sorted(train), sorted(val))
    assert hold_out(12, 0.25)[1].tolist() == [0, 5, 8]  # stored results depend on it
    assert "1 sample to train on; expected at least 2" in refusal(hold_out, 1, 0.5)
    train, val = hold_out(3, 0)  # a fraction of nothing leaves all samples to train on
    assert (train.tolist(), val.tolist()) == ([0, 1, 2], [])
    assert torch.equal(torch.ones(3)[val], torch.ones(0))


@given(sizes, worlds)
def test_the_shares_of_a_count_are_all_of_it_and_differ_by_one_at_most(count, world):
    parts = [range(count)[Share(rank, world).of(count)] for rank in range(world)]
    assert [i for part in parts for i in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= (count % world > 0)


def images(count):
    return TensorSplit(noise(count, 4, 4, 1), torch.arange(count), torch.zeros(1), torch.ones(1), 1, True)


def texts(count):
    ids = [[5 + i] * (1 + i * 7 % 5) for i in range(count)]
    encoded = {"input_ids": ids, "token_type_ids": [[0] * len(text) for text in ids]}
    return pack(encoded, torch.arange(count), encoders.tokenizer("tiny"))


def unpadded(inputs):
    """Return the texts of a batch without padding, which depends on the other texts of the batch."""
    return [row[:, row[1] > 0].tolist() for row in inputs]


@pytest.mark.parametrize("make", [images, texts])
@given(count=sizes, part=st.integers(1, 6), world=worlds, seed=st.integers(0, 3))
def test_the_shares_of_a_training_batch_are_that_batch(make, count, part, world, seed):
    split, size = make(count), part * world
    if size > count:
        return
    whole = list(split.train_batches(size, seed))
    shares = [list(split.train_batches(size, seed, Share(rank, world))) for rank in range(world)]
    for (inputs, labels), parts in zip(whole, zip(*shares, strict=True), strict=True):
        assert {len(own) for _, own in parts} == {part}
        assert torch.equal(torch.cat([own for _, own in parts]), labels)
        if make is images:
            assert torch.equal(torch.cat([own for own, _ in parts]), inputs)
        else:
            assert [text for own, _ in parts for text in unpadded(own)] == unpadded(inputs)


@pytest.mark.parametrize("make", [images, texts])
@given(count=sizes, size=st.integers(1, 9), world=worlds)
def test_evaluation_gives_every_sample_to_one_process(make, count, size, world):
    split = make(count)
    batches = [batch for rank in range(world) for batch in split.eval_batches(size, Share(rank, world))]
    assert all(len(labels) <= size for _, labels in batches)
    assert sorted(int(i) for _, labels in batches for i in labels) == list(range(count))


@pytest.mark.parametrize("workers", [0, 1])
def test_streamed_images_are_shared_out_as_well(tmp_path, workers):
    write_image(tmp_path / "one.png", noise(1, 9, 6)[0])
    split = StreamedSplit([(tmp_path / "one.png", i) for i in range(21)], 4, True, workers)

    def numbers(batches):
        return [labels.tolist() for _, labels in batches]

    for world in (1, 2, 3):
        shares = [Share(rank, world) for rank in range(world)]
        shown = [numbers(split.eval_batches(4, share)) for share in shares]
        assert [i for part in shown for batch in part for i in batch] == list(range(21))
        epochs = [numbers(split.train_batches(6, 3, share)) for share in shares]
        whole = [[i for part in parts for i in part] for parts in zip(*epochs, strict=True)]
        assert whole == numbers(split.train_batches(6, 3))
        drawn = [i for batch in whole for i in batch]
        assert len(drawn) == len(set(drawn)) == 18  # the last, short batch is left out
