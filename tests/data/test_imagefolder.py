"""Streamed image folders: which images are read, in which order, by which draws, and what is refused."""

import pytest
import torch
from torch.utils.data import DataLoader, RandomSampler

from lpslim.data import decoded
from lpslim.data.datasets import imagefolder
from lpslim.data.splits import Share
from tests.data.making import noise, refusal, settings, write_image

CLASSES = ("n01440764", "n01443537")


@pytest.fixture
def root(tmp_path):
    """Ten training and three test images a class, of 12 x 10 pixels, each of one colour of its own."""
    for split, count in (("train", 10), ("val", 3)):
        for label, name in enumerate(CLASSES):
            for i in range(count):
                colour = torch.tensor([20 * i, 100 * label, 7], dtype=torch.uint8)
                write_image(tmp_path / split / name / f"{i}.png", colour.expand(10, 12, 3).contiguous())
    return tmp_path


def load(root, **changes):
    changes = {"image_size": 8, "val_fraction": 0.2, "cache_gb": 0, **changes}
    return imagefolder.load(settings(root, **changes), root / "cache")


def noisy(folder, workers):
    """Return a split of ten times the same image of noise."""
    for i in range(10):
        write_image(folder / f"{i}.png", noise(1, 32, 32)[0])
    return imagefolder.StreamedSplit([(folder / f"{i}.png", i) for i in range(10)], 8, True, workers)


def test_splits_classes_and_pixels_in_imagenets_units_and_under_another_normalisation(root):
    data = load(root)
    assert (len(data.train), len(data.val), len(data.test)) == (16, 4, 6)
    assert (data.num_classes, data.shape) == (2, (3, 8, 8))
    assert data.reading == {"image_size": 8, "workers": 0}
    ((images, labels),) = data.test.eval_batches(6)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    mean, std = torch.tensor(imagefolder.MEAN), torch.tensor(imagefolder.STD)
    expected = (torch.tensor([20, 0, 7]) / 255 - mean) / std
    torch.testing.assert_close(images[1, :, 4, 4], expected)
    files = [sorted((root / "train" / name).iterdir()) for name in CLASSES]
    assert sorted(data.train.samples + data.val.samples) == [(f, i) for i in (0, 1) for f in files[i]]
    other = data.normalised((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    assert other.reading == {**data.reading, "mean": [0.5] * 3, "std": [0.25] * 3}
    ((images, _),) = other.test.eval_batches(6)
    torch.testing.assert_close(images[1, :, 4, 4], (torch.tensor([20, 0, 7]) / 255 - 0.5) / 0.25)


@pytest.mark.parametrize("workers", [0, 2])
def test_one_process_reads_as_a_plain_loader_does(tmp_path, monkeypatch, workers):
    split, made = noisy(tmp_path, workers), []
    noted = lambda images, **options: made.append(images) or DataLoader(images, **options)  # noqa: E731
    monkeypatch.setattr(imagefolder, "DataLoader", noted)
    torch.manual_seed(7)
    batches = list(split.train_batches(4, seed=1))
    torch.manual_seed(7)
    generator = torch.Generator().manual_seed(1)
    order = RandomSampler(range(10), generator=generator)
    plain = DataLoader(made[0], 4, sampler=order, drop_last=True, num_workers=workers, generator=generator)
    for (one, label), (other, again) in zip(batches, plain, strict=True):
        assert torch.equal(label, again)
        assert torch.equal(one, other)


def test_workers_of_different_processes_draw_different_crops(tmp_path):
    split = noisy(tmp_path, 1)
    one, other = (next(split.train_batches(4, 0, Share(rank, 2)))[0] for rank in range(2))
    assert not torch.equal(one, other)


def test_the_fingerprint_is_of_names_and_sizes(root):
    before = load(root).fingerprint
    assert before.startswith("listing:")
    assert before == load(root, image_size=4, workers=1).fingerprint
    (root / "val" / CLASSES[0] / "0.png").rename(root / "val" / CLASSES[0] / "zero.png")
    assert load(root).fingerprint != before


def test_bad_folders_and_sizes_are_refused(root, monkeypatch):
    message = refusal(load, root / "nowhere")
    assert message.startswith(f"dataset.root={root}/nowhere: ")
    assert message.endswith("expected train/<class>/<image>")
    message = refusal(lambda: load(root, image_size=224))
    assert message == f"dataset.image_size=224: must be at most 10, the size of images in {root}"
    assert load(root, image_size=10).shape == (3, 10, 10)
    (root / "val" / CLASSES[1]).rename(root / "val" / "other")
    alone = f"in the training set alone: {CLASSES[1]}; in the test set alone: other"
    assert refusal(load, root) == f"dataset.root={root}: class folders differ: {alone}"
    (root / "val" / "other").rename(root / "val" / CLASSES[1])
    (root / "train" / CLASSES[0] / "0.png").write_bytes(b"not an image")
    assert refusal(load, root).startswith(f"{root}/train/{CLASSES[0]}/0.png: cannot be read as an image")
    (root / "train" / CLASSES[1] / "9.png").write_bytes(b"")
    monkeypatch.setattr(decoded, "SAMPLED", 1)  # in a large folder it is not among those looked into
    (root / "train" / CLASSES[0] / "0.png").unlink()
    assert refusal(load, root) == f"{root}/train/{CLASSES[1]}/9.png: is empty"
