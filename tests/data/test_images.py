"""In-memory images: batches, augmentation and normalisation against slow loops over single images."""

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF

from lpslim.data.images import TensorSplit, image_data, pixel_statistics
from lpslim.data.splits import hold_out
from lpslim.models.weights import IMAGENET
from tests.data.making import noise, refusal, settings


@pytest.mark.parametrize(("count", "size", "batches"), [(50, 8, 6), (48, 8, 6), (5, 8, 1), (3, 1, 3)])
def test_an_epoch_shows_every_image_at_most_once(count, size, batches):
    split = TensorSplit(noise(count, 4, 4), torch.arange(count), torch.zeros(3), torch.ones(3), 1, True)
    labels = [labels for _, labels in split.train_batches(size, seed=0)]
    assert [len(batch) for batch in labels] == [min(size, count)] * batches  # none is short
    shown = torch.cat(labels).tolist()
    assert len(set(shown)) == len(shown) > count - size


def image_by_image(split, batch_size, seed):
    """Return an epoch whose images torchvision pads, crops and mirrors one at a time."""
    generator = torch.Generator().manual_seed(seed)
    count, edge, size = len(split), split.crop_padding, split.images.shape[1:3]
    order = torch.randperm(count, generator=generator).tolist()
    tops, lefts = torch.randint(2 * edge + 1, (2, count), generator=generator).tolist()
    mirror = ((torch.rand(count, generator=generator) < 0.5) & split.flip).tolist()
    images = []
    for number, top, left, mirrored in zip(order, tops, lefts, mirror, strict=True):
        image = TF.crop(TF.pad(split.images[number].permute(2, 0, 1), [edge]), top, left, *size)
        image = (TF.hflip(image) if mirrored else image).permute(1, 2, 0).float()
        images.append(((image - split.mean) / split.std).permute(2, 0, 1))
    whole = range(0, count - batch_size + 1, batch_size)
    return [(torch.stack(images[i : i + batch_size]), split.labels[order[i : i + batch_size]]) for i in whole]


@pytest.mark.parametrize(
    ("height", "width", "channels", "padding", "flip"),
    [(32, 32, 3, 4, True), (32, 32, 3, 4, False), (8, 8, 1, 1, True), (7, 5, 3, 2, True), (6, 6, 3, 0, True)],
)
def test_batches_equal_the_slow_reference_to_the_bit(height, width, channels, padding, flip):
    generator = torch.Generator().manual_seed(4)
    mean, std = (torch.rand(channels, generator=generator) * 100 + 1 for _ in range(2))
    images = noise(100, height, width, channels)
    split = TensorSplit(images, torch.arange(100) % 7, mean, std, padding, flip)
    state = torch.get_rng_state()
    batches, expected = list(split.train_batches(24, seed=5)), image_by_image(split, 24, seed=5)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator has no part in it
    assert len(batches) == len(expected) == 4
    for (ours, labels), (theirs, true) in zip(batches, expected, strict=True):
        assert torch.equal(ours, theirs)
        assert ours.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(labels, true)
    ((evaluated, _),) = split.eval_batches(100)
    assert torch.equal(evaluated, ((images.float() - mean) / std).permute(0, 3, 1, 2))


@pytest.mark.parametrize("channels", [1, 3])
def test_pixel_statistics_equal_numpy(channels):
    divisor = torch.arange(1, channels + 1, dtype=torch.uint8)  # no two channels alike
    images = noise(50, 9, 7, channels) // divisor
    values = images.numpy().astype(np.float64)
    mean, std = pixel_statistics(images)
    np.testing.assert_allclose(mean.numpy(), values.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(std.numpy(), values.std((0, 1, 2)), rtol=1e-6)


def test_splits_share_the_statistics_of_the_images_trained_on(tmp_path):
    images, labels = noise(40, 4, 4), torch.arange(40)
    test = (noise(5, 4, 4, seed=9), torch.arange(5))
    chosen = settings(tmp_path, val_fraction=0.25, crop_padding=3, flip=True)
    data = image_data(chosen, "here", "0", 40, (images, labels), test)
    assert (data.name, data.source, data.fingerprint, data.shape) == ("mine", "here", "0", (3, 4, 4))
    train, val = hold_out(40, 0.25)
    assert torch.equal(data.train.labels, train)
    assert torch.equal(data.val.images, images[val])
    mean, _ = pixel_statistics(images[train])
    for part in (data.train, data.val, data.test):
        assert torch.equal(part.mean, mean)
        assert (part.crop_padding, part.flip) == ((3, True) if part is data.train else (0, False))


def test_another_normalisation_holds_for_every_split_and_is_told(tmp_path):
    images, labels = noise(10, 4, 4), torch.arange(10)
    data = image_data(settings(tmp_path), "here", "0", 10, (images, labels), (images, labels))
    other = data.normalised(*IMAGENET)
    assert data.reading == {}
    assert other.reading == {"mean": list(IMAGENET[0]), "std": list(IMAGENET[1])}
    assert torch.equal(other.train.mean, other.val.std * 0 + other.test.mean)
    ((inputs, _),) = other.test.eval_batches(10)
    slow = torch.stack([TF.normalize(TF.to_tensor(image.numpy()), *IMAGENET) for image in images])
    torch.testing.assert_close(inputs, slow)
    assert "images of 1 channels, not for (3, 4, 4)" in refusal(data.normalised, [0.5], [0.5])
