"""In-memory images: batches, augmentation and normalisation against slow loops over single images."""

from collections import Counter

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF

from lpslim.data.images import TensorSplit, crop_flip, pixel_statistics, splits
from lpslim.data.splits import hold_out
from tests.data.making import noise


def plain_split(images, **augmentation):
    """Return a split whose batches are the pixel values themselves, and whose labels number the images."""
    zeros, ones = torch.zeros(images.shape[-1]), torch.ones(images.shape[-1])
    return TensorSplit(images, torch.arange(len(images)), zeros, ones, **augmentation)


def all_crops(image, padding):
    """Return the draw (top, left, mirrored) behind every crop of one image (H, W, C), by its bytes."""
    height, width, _ = image.shape
    padded = TF.pad(image.permute(2, 0, 1), [padding])
    draws = {}
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = TF.crop(padded, top, left, height, width)
            for mirrored, view in ((False, crop), (True, TF.hflip(crop))):
                draws[view.permute(1, 2, 0).contiguous().numpy().tobytes()] = (top, left, mirrored)
    return draws


@pytest.mark.parametrize(("height", "width", "padding"), [(8, 8, 2), (5, 7, 1), (4, 4, 0)])
def test_crop_flip_equals_torchvision_image_by_image(height, width, padding):
    images = noise(6, height, width)
    padded = torch.nn.functional.pad(images, (0, 0, *(padding,) * 4))
    generator = torch.Generator().manual_seed(1)
    index = torch.randint(6, (40,), generator=generator)
    shift = torch.randint(2 * padding + 1, (2, 40), generator=generator)
    mirror = torch.rand(40, generator=generator) < 0.5
    crops = crop_flip(padded, index, shift, mirror, (height, width))
    for row in range(40):
        image = TF.pad(images[index[row]].permute(2, 0, 1), [padding])
        image = TF.crop(image, int(shift[0, row]), int(shift[1, row]), height, width)
        expected = TF.hflip(image) if mirror[row] else image
        assert torch.equal(crops[row], expected.permute(1, 2, 0)), row


def test_every_crop_and_both_sides_are_drawn_equally_often():
    image, count = noise(1, 3, 3), 3600
    split = plain_split(image.expand(count, 3, 3, 3), crop_padding=1, flip=True)
    ((batch, _),) = split.train_batches(count, seed=0)
    draws = all_crops(image[0], 1)
    drawn = Counter(draws[row.tobytes()] for row in batch.permute(0, 2, 3, 1).to(torch.uint8).numpy())
    assert len(drawn) == 18  # 3 x 3 corners, 2 sides
    assert all(abs(times - 200) < 60 for times in drawn.values()), drawn  # with a deviation of 14


@pytest.mark.parametrize(
    ("count", "size", "batches"), [(50, 8, 6), (48, 8, 6), (5, 8, 1), (8, 8, 1), (3, 1, 3)]
)
def test_an_epoch_shows_every_image_at_most_once(count, size, batches):
    split = plain_split(noise(count, 4, 4), crop_padding=1, flip=True)
    labels = [labels for _, labels in split.train_batches(size, seed=0)]
    assert [len(batch) for batch in labels] == [min(size, count)] * batches  # none is short
    shown = torch.cat(labels).tolist()
    assert len(set(shown)) == len(shown) > count - size


def test_the_seed_decides_every_bit():
    split = plain_split(noise(64, 6, 6), crop_padding=2, flip=True)

    def epoch(seed):
        images, labels = zip(*split.train_batches(16, seed), strict=True)
        return torch.cat(images), torch.cat(labels)

    images, labels = epoch(5)
    state = torch.get_rng_state()
    again, labels_again = epoch(5)
    assert torch.equal(images, again)
    assert torch.equal(labels, labels_again)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator has no part in it
    others, other_labels = epoch(6)
    assert not torch.equal(labels, other_labels)
    assert not torch.equal(images[labels.argsort()], others[other_labels.argsort()])  # other crops too


@pytest.mark.parametrize(("size", "lengths"), [(7, [7, 7, 6]), (20, [20]), (100, [20])])
def test_evaluation_covers_all_in_order_without_augmentation(size, lengths):
    images = noise(20, 4, 4)
    batches = list(plain_split(images, crop_padding=2, flip=True).eval_batches(size))
    assert [len(labels) for _, labels in batches] == lengths
    assert torch.equal(torch.cat([labels for _, labels in batches]), torch.arange(20))
    assert torch.equal(torch.cat([x for x, _ in batches]).permute(0, 2, 3, 1), images.float())


def pixel_by_pixel(split, batch_size, seed):
    """Return an epoch by one index per pixel of the padded data set."""
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
def test_batches_equal_the_slow_reference_to_the_bit(height, width, channels, padding, flip):
    generator = torch.Generator().manual_seed(4)
    mean, std = (torch.rand(channels, generator=generator) * 100 + 1 for _ in range(2))
    images = noise(100, height, width, channels)
    split = TensorSplit(images, torch.arange(100) % 7, mean, std, padding, flip)
    batches, expected = list(split.train_batches(24, seed=5)), pixel_by_pixel(split, 24, seed=5)
    assert len(batches) == len(expected) == 4
    for (ours, labels), (theirs, true) in zip(batches, expected, strict=True):
        assert torch.equal(ours, theirs)
        assert ours.stride() == theirs.stride()
        assert torch.equal(labels, true)
    ((evaluated, _),) = split.eval_batches(100)
    assert torch.equal(evaluated, ((images.float() - mean) / std).permute(0, 3, 1, 2))


@pytest.mark.parametrize("channels", [1, 3])
def test_pixel_statistics_equal_numpy(channels):
    divisor = torch.arange(1, channels + 1, dtype=torch.uint8)  # no two channels alike
    images = noise(50, 9, 7, channels) // divisor
    values = images.numpy().astype(np.float64)
    for ours, theirs in zip(
        pixel_statistics(images), (values.mean((0, 1, 2)), values.std((0, 1, 2))), strict=True
    ):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-6)
        assert ours.dtype == torch.float32


def test_splits_share_the_statistics_of_the_images_trained_on():
    images, labels = noise(40, 4, 4), torch.arange(40)
    test = (noise(5, 4, 4, seed=9), torch.arange(5))
    parts = splits((images, labels), test, val_fraction=0.25, crop_padding=3, flip=True)
    train, val = hold_out(40, 0.25)
    assert torch.equal(parts["train"].labels, train)
    assert torch.equal(parts["val"].images, images[val])
    mean, _ = pixel_statistics(images[train])
    for name, part in parts.items():
        assert torch.equal(part.mean, mean)
        assert (part.crop_padding, part.flip) == ((3, True) if name == "train" else (0, False))
