"""What several processes take of a split: together exactly what one takes, none of it twice."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from lpslim.data import imagefolder
from lpslim.data.datasets.imagefolder import StreamedSplit
from lpslim.data.decoded import PixelStore
from lpslim.data.images import TensorSplit
from lpslim.data.splits import Share
from lpslim.data.tokens import pack

sizes, worlds = st.integers(1, 40), st.integers(1, 5)


@given(sizes, worlds)
def test_the_parts_of_a_count_are_all_of_it_and_differ_by_one_at_most(count, world):
    parts = [range(count)[Share(rank, world).of(count)] for rank in range(world)]
    assert [i for part in parts for i in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= (count % world > 0)


def images(count):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 4, 4, 1), generator=generator, dtype=torch.uint8)
    return TensorSplit(pixels, torch.arange(count), torch.zeros(1), torch.ones(1), crop_padding=1, flip=True)


def texts(count):
    ids = [[5 + i] * (1 + i * 7 % 5) for i in range(count)]
    return pack({"input_ids": ids, "token_type_ids": [[0] * len(each) for each in ids]}, torch.arange(count))


def words(inputs):
    """Return the texts of a batch without padding, which depends on who else is in it."""
    return [row[:, row[1] > 0].tolist() for row in inputs]


@pytest.mark.parametrize("make", [images, texts])
@given(count=sizes, each=st.integers(1, 6), world=worlds, seed=st.integers(0, 3))
def test_the_shares_of_every_training_batch_are_that_batch(make, count, each, world, seed):
    split, size = make(count), each * world
    if size > count:
        return
    whole = list(split.train_batches(size, seed))
    shares = [list(split.train_batches(size, seed, Share(rank, world))) for rank in range(world)]
    assert all(len(labels) == each for share in shares for _, labels in share)
    for (inputs, labels), parts in zip(whole, zip(*shares, strict=True), strict=True):
        assert torch.equal(torch.cat([part[1] for part in parts]), labels)
        if make is images:
            assert torch.equal(torch.cat([part[0] for part in parts]), inputs)
        else:
            assert [word for part in parts for word in words(part[0])] == words(inputs)


@pytest.mark.parametrize("make", [images, texts])
@given(count=sizes, size=st.integers(1, 9), world=worlds)
def test_evaluation_gives_every_sample_to_one_process(make, count, size, world):
    split = make(count)
    batches = [batch for rank in range(world) for batch in split.eval_batches(size, Share(rank, world))]
    assert all(len(labels) <= size for _, labels in batches)
    assert sorted(int(i) for _, labels in batches for i in labels) == list(range(count))


@pytest.fixture
def streamed(tmp_path):
    """Twenty images that no crop changes: each is of one colour."""
    for i in range(20):
        Image.new("RGB", (6, 6), (10 * i, 0, 0)).save(tmp_path / f"{i}.png")

    def split(workers):
        return StreamedSplit([(tmp_path / f"{i}.png", i) for i in range(20)], 4, True, workers)

    return split


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [2, 4])
def test_streamed_images_are_shared_out_as_well(streamed, workers, world):
    split = streamed(workers)
    whole = torch.stack([labels for _, labels in split.train_batches(8, seed=3)])
    shares = [[labels for _, labels in split.train_batches(8, 3, Share(r, world))] for r in range(world)]
    assert whole.shape == (2, 8)
    assert torch.equal(torch.cat([torch.stack(share) for share in shares], dim=1), whole)
    seen = [labels for r in range(world) for _, labels in split.eval_batches(3, Share(r, world))]
    assert torch.cat(seen).tolist() == list(range(20))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stored", [False, True], ids=["streamed", "stored"])
def test_of_an_odd_number_of_images_none_is_lost_and_none_comes_twice(tmp_path, stored, workers):
    files = [tmp_path / f"{i}.png" for i in range(23)]
    for i, file in enumerate(files):
        Image.new("RGB", (6 + i, 9), (10 * i, 0, 0)).save(file)
    store = PixelStore(tmp_path, files, tmp_path / "cache", 1.0 if stored else 0.0, workers)
    rows = torch.arange(1, 22)  # a part of the store: the red of each image is ten times its number
    split = StreamedSplit([(files[i], i) for i in rows.tolist()], 4, True, workers,
                          decoded=partial(store.pixels, rows))  # fmt: skip
    for world in (1, 2, 3):
        shares = [Share(rank, world) for rank in range(world)]
        shown = [seen(split.eval_batches(4, share)) for share in shares]
        assert [i for images in shown for batch in images for i in batch] == list(range(1, 22))
        epochs = [seen(split.train_batches(6, 3, share)) for share in shares]
        whole = [[i for part in parts for i in part] for parts in zip(*epochs, strict=True)]
        assert whole == seen(split.train_batches(6, 3))
        drawn = [i for batch in whole for i in batch]
        assert len(drawn) == len(set(drawn)) == 18  # the last, short batch is left out
        assert set(drawn) <= set(range(1, 22))
    assert len(list(tmp_path.glob("cache/*/pixels"))) == stored


def seen(batches):
    """Return the numbers of the images in each batch, by their labels and by their colours."""
    found = []
    for images, labels in batches:
        red = (images[:, 0, 2, 2] * imagefolder.STD[0] + imagefolder.MEAN[0]) * 25.5
        assert red.round().tolist() == labels.tolist()
        found.append(labels.tolist())
    return found


def test_no_process_decodes_the_images_of_another(streamed, monkeypatch):
    split, opened = streamed(0), []
    blank = torch.zeros(3, 4, 4)
    monkeypatch.setattr(imagefolder._Decoded, "__getitem__", lambda _, i: opened.append(i) or (blank, i))
    for rank in range(2):
        list(split.train_batches(4, 0, Share(rank, 2)))
    assert sorted(opened) == list(range(20))


@pytest.mark.parametrize("workers", [0, 2])
def test_one_process_reads_streamed_images_as_a_plain_loader_does(tmp_path, monkeypatch, workers):
    split, made = noisy(tmp_path, workers), []
    monkeypatch.setattr(
        imagefolder,
        "DataLoader",
        lambda dataset, **named: made.append(dataset) or DataLoader(dataset, **named),
    )
    torch.manual_seed(7)
    batches = list(split.train_batches(4, seed=1))
    torch.manual_seed(7)
    plain = DataLoader(made[0], 4, shuffle=True, drop_last=True, num_workers=workers,
                       generator=torch.Generator().manual_seed(1))  # fmt: skip
    for (one, label), (other, again) in zip(batches, plain, strict=True):
        assert torch.equal(label, again)
        assert torch.equal(one, other)


def noisy(folder, workers):
    """Return a split of ten times the same image of noise."""
    pixels = torch.randint(256, (32, 32, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for i in range(10):
        Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
    return StreamedSplit([(folder / f"{i}.png", i) for i in range(10)], 8, True, workers)


def test_workers_of_different_processes_draw_different_crops(tmp_path):
    split = noisy(tmp_path, 1)
    one, other = (next(split.train_batches(4, 0, Share(rank, 2)))[0] for rank in range(2))
    assert not torch.equal(one, other)
