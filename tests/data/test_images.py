"""Batches, augmentation and decoding: against slow loops over single images, and the files themselves."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor

from lpslim.base.errors import UserError
from lpslim.data import cifar, digits
from lpslim.data.images import TensorSplit, crop_flip, pixel_statistics, splits
from lpslim.data.splits import Data, hold_out


def noise(count: int, height: int, width: int, channels: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, height, width, channels), dtype=torch.uint8, generator=generator)


def plain_split(images: Tensor, **augmentation: object) -> TensorSplit:
    """Return a split whose batches are the pixel values themselves, and whose labels number the images."""
    channels = images.shape[-1]
    return TensorSplit(
        images, torch.arange(len(images)), torch.zeros(channels), torch.ones(channels), **augmentation
    )


def all_crops(image: Tensor, padding: int) -> dict[bytes, tuple[int, int, bool]]:
    """Return the draw behind every crop that RandomCrop and a flip can make of one (H, W, C) image."""
    height, width, _ = image.shape
    padded = TF.pad(image.permute(2, 0, 1), [padding])
    found = {}
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = TF.crop(padded, top, left, height, width)
            for mirrored, view in ((False, crop), (True, TF.hflip(crop))):
                found[view.permute(1, 2, 0).contiguous().numpy().tobytes()] = (top, left, mirrored)
    return found


# ---- crops and flips


@pytest.mark.parametrize(("height", "width", "padding"), [(8, 8, 2), (5, 7, 1), (4, 4, 0)])
def test_crop_flip_equals_torchvision_image_by_image(height, width, padding):
    images = noise(6, height, width)
    padded = torch.nn.functional.pad(images, (0, 0, *(padding,) * 4))
    generator = torch.Generator().manual_seed(1)
    index = torch.randint(6, (40,), generator=generator)
    shift = torch.randint(2 * padding + 1, (2, 40), generator=generator)
    mirror = torch.rand(40, generator=generator) < 0.5

    got = crop_flip(padded, index, shift, mirror, (height, width))

    for row in range(40):
        image = TF.pad(images[index[row]].permute(2, 0, 1), [padding])
        image = TF.crop(image, int(shift[0, row]), int(shift[1, row]), height, width)
        expected = TF.hflip(image) if mirror[row] else image
        assert torch.equal(got[row], expected.permute(1, 2, 0)), row


@pytest.mark.parametrize("flip", [True, False])
def test_training_images_are_crops_of_their_own_image(flip):
    images = noise(24, 6, 5)
    split = plain_split(images, crop_padding=2, flip=flip)
    drawn = []
    for batch, labels in split.train_batches(8, seed=3):
        for pixels, label in zip(batch, labels.tolist(), strict=True):
            view = pixels.permute(1, 2, 0).contiguous().to(torch.uint8).numpy().tobytes()
            drawn.append(
                all_crops(images[label], 2)[view]
            )  # KeyError: not a crop of the image it is labelled as
    assert len(set(drawn)) > 10
    assert {mirrored for *_, mirrored in drawn} == ({True, False} if flip else {False})


def test_every_crop_and_both_sides_are_drawn_equally_often():
    count, padding = 3600, 1
    image = noise(1, 3, 3)
    split = plain_split(image.expand(count, 3, 3, 3), crop_padding=padding, flip=True)
    names = all_crops(image[0], padding)
    ((batch, _),) = split.train_batches(count, seed=0)
    rows = batch.permute(0, 2, 3, 1).contiguous().to(torch.uint8).numpy()
    seen = Counter(names[row.tobytes()] for row in rows)
    assert len(seen) == 18  # 3 x 3 corners, 2 sides
    # 200 each are expected, with a deviation of 14
    assert all(abs(times - count / 18) < 60 for times in seen.values()), seen


def test_no_augmentation_without_being_asked():
    images = noise(10, 4, 4)
    ((batch, labels),) = plain_split(images).train_batches(10, seed=0)
    assert torch.equal(batch.permute(0, 2, 3, 1), images[labels].float())


# ---- batches


@pytest.mark.parametrize(
    ("count", "size", "batches"), [(50, 8, 6), (48, 8, 6), (5, 8, 1), (8, 8, 1), (3, 1, 3)]
)
def test_an_epoch_shows_every_image_at_most_once(count, size, batches):
    split = plain_split(noise(count, 4, 4), crop_padding=1, flip=True)
    labels = [labels for _, labels in split.train_batches(size, seed=0)]
    assert len(labels) == batches
    assert {len(each) for each in labels} == {min(size, count)}  # none is short
    shown = torch.cat(labels).tolist()
    assert len(set(shown)) == len(shown)
    assert set(shown) <= set(range(count))
    assert count - len(shown) < size


def test_other_epochs_leave_other_images_out():
    split = plain_split(noise(20, 2, 2))
    shown = [set(torch.cat([y for _, y in split.train_batches(16, seed)]).tolist()) for seed in range(10)]
    assert set.union(*shown) == set(range(20))


def epoch(split: TensorSplit, seed: int) -> tuple[Tensor, Tensor]:
    images, labels = zip(*split.train_batches(16, seed), strict=True)
    return torch.cat(images), torch.cat(labels)


def test_the_seed_decides_every_bit():
    split = plain_split(noise(64, 6, 6), crop_padding=2, flip=True)
    torch.manual_seed(1)
    images, labels = epoch(split, seed=5)
    torch.manual_seed(2)  # the global generator has no part in it
    state = torch.get_rng_state()
    again, labels_again = epoch(split, seed=5)
    assert torch.equal(images, again)
    assert torch.equal(labels, labels_again)
    assert torch.equal(torch.get_rng_state(), state)

    others, other_labels = epoch(split, seed=6)
    assert not torch.equal(labels, other_labels)
    assert sorted(labels.tolist()) == sorted(other_labels.tolist())
    assert not torch.equal(images[labels.argsort()], others[other_labels.argsort()])  # other crops too


@pytest.mark.parametrize("size", [7, 20, 100])
def test_evaluation_covers_all_in_order(size):
    images = noise(20, 4, 4)
    split = plain_split(images, crop_padding=2, flip=True)  # which are for training alone
    batches = list(split.eval_batches(size))
    assert [len(labels) for _, labels in batches] == {7: [7, 7, 6], 20: [20], 100: [20]}[size]
    assert torch.equal(torch.cat([labels for _, labels in batches]), torch.arange(20))
    assert torch.equal(torch.cat([x for x, _ in batches]).permute(0, 2, 3, 1), images.float())


def test_batches_are_normalised_per_channel():
    images, mean, std = noise(6, 4, 5), torch.tensor([10.0, 20.0, 30.0]), torch.tensor([2.0, 4.0, 8.0])
    split = TensorSplit(images, torch.arange(6), mean, std)
    for batches in (split.eval_batches(6), split.train_batches(6, seed=0)):
        ((batch, labels),) = batches
        assert batch.shape == (6, 3, 4, 5)
        assert batch.dtype == torch.float32
        for c in range(3):
            expected = (images[labels][..., c].numpy().astype(np.float32) - mean[c].item()) / std[c].item()
            np.testing.assert_array_equal(batch[:, c].numpy(), expected)


def entry_by_entry(split: TensorSplit, batch_size: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Return an epoch by one index per pixel of the padded data set, as the first records were made."""
    generator = torch.Generator().manual_seed(seed)
    count, edge, (height, width) = len(split), split.crop_padding, split.images.shape[1:3]
    order = torch.randperm(count, generator=generator)
    shift = torch.randint(2 * edge + 1, (2, count), generator=generator)
    mirror = (torch.rand(count, generator=generator) < 0.5) & split.flip
    padded = torch.nn.functional.pad(split.images, (0, 0, edge, edge, edge, edge))
    batches = []
    for start in range(0, count - batch_size + 1, batch_size):
        taken = slice(start, start + batch_size)
        rows = shift[0, taken, None] + torch.arange(height)
        across = torch.where(mirror[taken, None], width - 1 - torch.arange(width), torch.arange(width))
        cols = shift[1, taken, None] + across
        pixels = padded[order[taken, None, None], rows[:, :, None], cols[:, None, :]]
        scaled = (pixels.float() - split.mean) / split.std
        batches.append((scaled.permute(0, 3, 1, 2), split.labels[order[taken]]))
    return batches


@pytest.mark.parametrize(
    ("height", "width", "channels", "padding", "flip"),
    [(32, 32, 3, 4, True), (32, 32, 3, 4, False), (8, 8, 1, 1, True), (7, 5, 3, 2, True), (6, 6, 3, 0, True)],
)
def test_batches_are_those_that_stored_results_saw_to_the_bit(height, width, channels, padding, flip):
    generator = torch.Generator().manual_seed(4)
    mean, std = (torch.rand(channels, generator=generator) * 100 + 1 for _ in range(2))
    images = noise(100, height, width, channels)
    split = TensorSplit(images, torch.arange(100) % 7, mean, std, padding, flip)
    expected = entry_by_entry(split, 24, seed=5)
    found = list(split.train_batches(24, seed=5))
    assert len(found) == len(expected) == 4
    for (ours, labels), (theirs, true) in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)
        assert ours.stride() == theirs.stride()
        assert torch.equal(labels, true)
    ((evaluated, _),) = split.eval_batches(100)
    assert torch.equal(evaluated, ((images.float() - mean) / std).permute(0, 3, 1, 2))


def test_batches_are_tensors_of_their_own():
    split = plain_split(noise(32, 6, 6), crop_padding=1, flip=True)
    batches = [batch for batch, _ in split.train_batches(8, seed=0)]
    again = [batch.clone() for batch, _ in split.train_batches(8, seed=0)]
    assert all(torch.equal(a, b) for a, b in zip(batches, again, strict=True))


def test_black_border_is_black_before_normalising():
    """As torchvision pads before its Normalize: the border is pixel value 0, not 0 after it."""
    split = TensorSplit(
        torch.full((40, 2, 2, 1), 255, dtype=torch.uint8),
        torch.arange(40),
        torch.tensor([100.0]),
        torch.tensor([50.0]),
        crop_padding=1,
    )
    ((batch, _),) = split.train_batches(40, seed=0)
    assert batch.unique().tolist() == pytest.approx([-2.0, 3.1])


# ---- splits and statistics


@pytest.mark.parametrize(
    ("count", "fraction", "held"),
    [(100, 0.1, 10), (1437, 0.1, 144), (7, 0.5, 4), (10, 0.04, 1), (3, 0.99, 2)],
)
def test_hold_out_parts_the_indices(count, fraction, held):
    train, val = hold_out(count, fraction)
    assert len(val) == held
    assert sorted(train.tolist() + val.tolist()) == list(range(count))
    assert train.tolist() == sorted(train.tolist())
    assert val.tolist() == sorted(val.tolist())


def test_hold_out_is_fixed():
    torch.manual_seed(123)
    # literal: another choice would make stored results incomparable without a word
    assert hold_out(12, 0.25)[1].tolist() == [0, 5, 8]
    torch.manual_seed(321)
    assert hold_out(12, 0.25)[1].tolist() == [0, 5, 8]


@pytest.mark.parametrize("channels", [1, 3])
def test_pixel_statistics_equal_numpy(channels):
    images = noise(50, 9, 7, channels) // torch.arange(
        1, channels + 1, dtype=torch.uint8
    )  # no two channels alike
    mean, std = pixel_statistics(images)
    values = images.numpy().astype(np.float64)
    np.testing.assert_allclose(mean.numpy(), values.mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(std.numpy(), values.std(axis=(0, 1, 2)), rtol=1e-6)
    assert mean.dtype == std.dtype == torch.float32


def test_statistics_are_those_of_the_images_trained_on():
    images, labels = noise(40, 4, 4), torch.arange(40)
    test = (noise(5, 4, 4, seed=9), torch.arange(5))
    parts = splits((images, labels), test, val_fraction=0.25, crop_padding=3, flip=True)
    train, val = hold_out(40, 0.25)
    assert torch.equal(parts["train"].labels, train)
    assert torch.equal(parts["val"].labels, val)
    assert torch.equal(parts["val"].images, images[val])
    expected = images[train].numpy().astype(np.float64).mean(axis=(0, 1, 2))
    for name, part in parts.items():
        np.testing.assert_allclose(part.mean.numpy(), expected, rtol=1e-6)
        assert (part.crop_padding, part.flip) == ((3, True) if name == "train" else (0, False))


# ---- image folders

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PER_CLASS = {"train": 2, "test": 1}


@pytest.fixture
def tree(tmp_path) -> Path:
    """A CIFAR-10 in miniature: PNG files of noise below ``train/<class>`` and ``test/<class>``."""
    root = tmp_path / "images"
    pixels = iter(noise(30, 32, 32, seed=7).numpy())
    for split, count in PER_CLASS.items():
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(next(pixels)).save(root / split / name / f"{i:04}.png")
    return root


def load(root: Path, cache: Path, val_fraction: float = 0.1) -> Data:
    settings = SimpleNamespace(
        name="cifar10", root=str(root), download=False, val_fraction=val_fraction, crop_padding=4, flip=True
    )
    return cifar.load(settings, cache)


def read(file: Path) -> Tensor:
    return torch.from_numpy(np.array(Image.open(file).convert("RGB")))


def test_decoded_pixels_and_labels_are_exact(tree, tmp_path):
    data = load(tree, tmp_path / "cache")
    assert (data.name, data.num_classes, data.shape) == ("cifar10", 10, (3, 32, 32))
    assert (len(data.train), len(data.val), len(data.test)) == (18, 2, 10)
    files = [
        (file, i) for i, name in enumerate(CLASSES) for file in sorted((tree / "train" / name).iterdir())
    ]
    for part, chosen in zip((data.train, data.val), hold_out(20, 0.1), strict=True):
        for row, index in enumerate(chosen.tolist()):
            file, label = files[index]
            assert torch.equal(part.images[row], read(file)), file
            assert part.labels[row] == label
    for i, name in enumerate(CLASSES):
        assert torch.equal(data.test.images[i], read(tree / "test" / name / "0000.png"))
    assert data.test.labels.tolist() == list(range(10))
    assert (data.train.crop_padding, data.train.flip) == (4, True)


def test_grey_and_palette_images_become_rgb(tree, tmp_path):
    grey, palette = tree / "test" / "cat" / "0000.png", tree / "test" / "dog" / "0000.png"
    Image.open(grey).convert("L").save(grey)
    Image.open(palette).convert("P").save(palette)
    data = load(tree, tmp_path / "cache")
    channels = data.test.images[CLASSES.index("cat")].unbind(-1)
    assert all(torch.equal(channel, torch.from_numpy(np.array(Image.open(grey)))) for channel in channels)
    assert torch.equal(data.test.images[CLASSES.index("dog")], read(palette))


def test_other_files_are_passed_over(tree, tmp_path):
    fingerprint = load(tree, tmp_path / "one").fingerprint
    (tree / "README.txt").write_text("not a split")
    (tree / "train" / "cat" / "notes.txt").write_text("not an image")
    data = load(tree, tmp_path / "other")
    assert len(data.train) + len(data.val) == 20
    assert data.fingerprint == fingerprint


def test_images_are_opened_once(tree, tmp_path, monkeypatch):
    first = load(tree, tmp_path / "cache")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("an image file was opened again")

    monkeypatch.setattr(Image, "open", refuse)
    second = load(tree, tmp_path / "cache")
    assert second.fingerprint == first.fingerprint
    for name in ("train", "val", "test"):
        assert torch.equal(getattr(second, name).images, getattr(first, name).images)
        assert torch.equal(getattr(second, name).labels, getattr(first, name).labels)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".safetensors"]


def test_fingerprint_does_not_depend_on_place_or_time(tree, tmp_path):
    fingerprint = load(tree, tmp_path / "cache").fingerprint
    copied = tmp_path / "elsewhere" / "copy"
    shutil.copytree(tree, copied)
    for file in copied.rglob("*.png"):
        os.utime(file, ns=(1, 1))
    assert load(copied, tmp_path / "cache").fingerprint == fingerprint


def test_one_pixel_changes_data_and_fingerprint(tree, tmp_path):
    cache = tmp_path / "cache"
    before = load(tree, cache)
    file = tree / "test" / "ship" / "0000.png"
    pixels = np.array(Image.open(file))
    pixels[31, 0, 2] ^= 1
    Image.fromarray(pixels).save(file)
    os.utime(file, ns=(2, 2))  # a clock too coarse to tell two writes apart must not decide this test
    after = load(tree, cache)  # the same cache: what it holds must not be taken for the new files
    assert after.fingerprint != before.fingerprint
    changed = (after.test.images != before.test.images).nonzero().tolist()
    assert changed == [[CLASSES.index("ship"), 31, 0, 2]]


def test_names_belong_to_the_fingerprint(tree, tmp_path):
    fingerprint = load(tree, tmp_path / "one").fingerprint
    cat, dog = (tree / "test" / name / "0000.png" for name in ("cat", "dog"))
    cat.rename(tmp_path / "kept.png")
    dog.rename(cat)
    (tmp_path / "kept.png").rename(dog)  # the same images under each other's label
    assert load(tree, tmp_path / "other").fingerprint != fingerprint


def test_an_image_of_another_size(tree, tmp_path):
    Image.new("RGB", (32, 30)).save(tree / "train" / "frog" / "0000.png")
    with pytest.raises(UserError, match=r"train/frog/0000\.png is 32x30, not 32x32"):
        load(tree, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.safetensors"))  # nothing half-done is left to be found


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_that_one_split_lacks(tree, tmp_path, split):
    shutil.rmtree(tree / split / "horse")
    with pytest.raises(UserError, match="images: the splits train, test do not hold the same classes"):
        load(tree, tmp_path / "cache")


def test_a_class_without_images(tree, tmp_path):
    (tree / "train" / "deer" / "0000.png").unlink()
    (tree / "train" / "deer" / "0001.png").unlink()
    with pytest.raises(UserError, match=r"train/deer holds no image \(\.jpg, "):
        load(tree, tmp_path / "cache")


def test_splits_without_class_folders(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
    with pytest.raises(UserError, match=r"train holds no class folders; expected .*train/<class>/<image>"):
        load(tmp_path, tmp_path / "cache")


@pytest.mark.parametrize("make", [True, False], ids=["empty", "missing"])
def test_nothing_there(tmp_path, make):
    root = tmp_path / "nowhere"
    if make:
        root.mkdir()
    with pytest.raises(UserError) as refused:
        load(root, tmp_path / "cache")
    message = str(refused.value)
    assert message.startswith(f"dataset.root={root}: no cifar10 there")
    assert "dataset.download=true" in message
    assert f"{root}/train/<class>/<image> and {root}/test/<class>/<image>" in message
    assert list(tmp_path.glob("nowhere/*")) == []  # and nothing was fetched


# ---- digits


def load_embedded(tmp_path: Path, image_size: int = 8, rgb: bool = False) -> Data:
    settings = SimpleNamespace(
        name="digits", image_size=image_size, rgb=rgb, val_fraction=0.1, crop_padding=1, flip=False
    )
    return digits.load(settings, tmp_path)


def test_digits_shapes(tmp_path):
    data = load_embedded(tmp_path)
    assert (data.name, data.num_classes, data.shape) == ("digits", 10, (1, 8, 8))
    assert (len(data.train), len(data.val), len(data.test)) == (1293, 144, 360)
    for part in (data.train, data.val, data.test):
        assert part.images.shape == (len(part), 8, 8, 1)
        assert (part.images.dtype, part.labels.dtype) == (torch.uint8, torch.int64)
        assert set(part.labels.tolist()) == set(range(10))
    # stratified: a fifth of each digit's 174 to 183 images
    assert all(35 <= count <= 37 for count in data.test.labels.bincount().tolist())
    assert list(tmp_path.iterdir()) == []  # embedded: nothing is stored


def test_digits_are_all_there_once_with_their_labels(tmp_path):
    data = load_embedded(tmp_path)
    pixels, labels = load_digits(return_X_y=True)

    def table(images: np.ndarray, targets: np.ndarray) -> Counter:
        rows = zip(images.reshape(len(targets), -1), targets.tolist(), strict=True)
        return Counter((row.tobytes(), label) for row, label in rows)

    expected = table(np.round(pixels * 255 / 16).astype(np.uint8), labels)
    parts = (data.train, data.val, data.test)
    found = sum((table(part.images.numpy(), part.labels.numpy()) for part in parts), Counter())
    assert found == expected


def test_digits_are_the_same_every_time(tmp_path):
    np.random.seed(1)
    torch.manual_seed(1)
    first = load_embedded(tmp_path)
    np.random.seed(2)
    torch.manual_seed(2)
    second = load_embedded(tmp_path)
    assert first.fingerprint == second.fingerprint
    for name in ("train", "val", "test"):
        for field in ("images", "labels", "mean", "std"):
            one, other = (getattr(getattr(data, name), field) for data in (first, second))
            assert torch.equal(one, other), (name, field)


def test_digits_enlarged_and_in_three_channels(tmp_path):
    plain, large = load_embedded(tmp_path), load_embedded(tmp_path, image_size=24, rgb=True)
    assert large.shape == (3, 24, 24)
    assert large.fingerprint != plain.fingerprint  # stored results of one are not those of the other
    for name in ("train", "val", "test"):
        small, big = getattr(plain, name), getattr(large, name)
        assert torch.equal(small.labels, big.labels)
        assert big.images.shape[1:] == (24, 24, 3)
        for row in range(24):
            for column in range(24):
                expected = small.images[:, row // 3, column // 3].expand(-1, 3)
                assert torch.equal(big.images[:, row, column], expected)
