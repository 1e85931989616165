"""Images in memory as uint8: batched, augmented and normalised in a few vector operations.

Shapes: N images, B a batch, H height, W width, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lpslim.data.decoded import ImageCache, Listing, joined
from lpslim.data.splits import WHOLE, Batch, Data, Parts, Share, hold_out


@dataclass(frozen=True)
class TensorSplit:
    """A split held whole in memory, or on the accelerator.

    images: (N, H, W, C) uint8. labels: (N,) int64. mean, std: (C,), in units of pixel value. Training images
    are padded by ``crop_padding`` black pixels and cropped at random, with ``flip`` half of them mirrored.
    """

    images: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor
    crop_padding: int = 0
    flip: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> TensorSplit:
        """Return the same split with its tensors on ``device``."""
        fields = ("images", "labels", "mean", "std")
        return replace(self, **{name: getattr(self, name).to(device) for name in fields})

    def train_batches(self, batch_size: int, seed: int, share: Share = WHOLE) -> Iterator[Batch]:
        """Yield one epoch; all draws come from a CPU generator with ``seed``, so are equal on every device.

        The last, short batch is left out: batch statistics of a handful of images are noise.
        """
        generator = torch.Generator().manual_seed(seed)
        count, device = len(self), self.images.device
        order = torch.randperm(count, generator=generator)
        shift = torch.randint(2 * self.crop_padding + 1, (2, count), generator=generator)
        mirror = (torch.rand(count, generator=generator) < 0.5) & self.flip
        order, shift, mirror = order.to(device), shift.to(device), mirror.to(device)
        edge, size = self.crop_padding, min(batch_size, count)
        height, width, channels = self.images.shape[1:]
        part = share.of(size)
        own = torch.arange(part.stop - part.start, device=device)
        # padded batch by batch: the whole data set with borders would be half as large again
        padded = self.images.new_zeros(len(own), height + 2 * edge, width + 2 * edge, channels)
        for start in range(0, count - size + 1, size):
            taken = slice(start + part.start, start + part.stop)
            index = order[taken]
            padded[:, edge : edge + height, edge : edge + width] = self.images.index_select(0, index)
            pixels = crop_flip(padded, own, shift[:, taken], mirror[taken], (height, width))
            yield self._normalise(pixels), self.labels[index]

    def eval_batches(self, batch_size: int, share: Share = WHOLE) -> Iterator[Batch]:
        """Yield every image of the share once, in order; the last batch may be short."""
        part = share.of(len(self))
        for start in range(part.start, part.stop, batch_size):
            taken = slice(start, min(start + batch_size, part.stop))
            yield self._normalise(self.images[taken]), self.labels[taken]

    def _normalise(self, pixels: Tensor) -> Tensor:
        width = pixels.shape[2]
        rows = pixels.float().flatten(2)  # (B, H, W * C): loops over C alone would be three steps long
        scaled = rows.sub_(self.mean.repeat(width)).div_(self.std.repeat(width)).view(pixels.shape)
        return scaled.permute(0, 3, 1, 2)  # (B, H, W, C) -> channels-last (B, C, H, W)


def crop_flip(padded: Tensor, index: Tensor, shift: Tensor, mirror: Tensor, size: Sequence[int]) -> Tensor:
    """Return one crop per image, mirrored where asked, gathered in whole rows of pixels.

    padded: (N, H + 2e, W + 2e, C). index, mirror: (B,). shift: (2, B), the crop's top and left corner.
    size: (H, W). Returns (B, H, W, C).
    """
    height, width = size
    count, (_, tall, wide, channels) = len(index), padded.shape
    rows = index[:, None] * tall + shift[0, :, None] + torch.arange(height, device=index.device)  # (B, H)
    starts = (rows * wide + shift[1, :, None]) * channels
    values = padded.flatten()
    run = width * channels
    runs = values.as_strided((len(values) - run + 1, run), (1, 1))  # a row of a crop may start anywhere
    crops = runs.index_select(0, starts.flatten()).view(count, height, width, channels)
    mirrored = crops.permute(0, 3, 1, 2).flip(3).permute(0, 2, 3, 1)  # torch is fast at this order of axes
    which = torch.arange(count, device=index.device) + count * mirror
    return torch.cat((crops, mirrored)).index_select(0, which)


def pixel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the exact mean and standard deviation (C,) of uint8 images (N, H, W, C)."""
    values = torch.arange(256, dtype=torch.float64)
    means, stds = [], []
    for channel in images.unbind(-1):
        share = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        means.append((share * values).sum())
        stds.append((share * (values - means[-1]) ** 2).sum().sqrt())
    return torch.stack(means).float(), torch.stack(stds).float()


def splits(train: Batch, test: Batch, *, val_fraction: float, crop_padding: int, flip: bool) -> Parts:
    """Return the splits of (images, labels) pairs, validation images taken out of the training set.

    Mean and deviation are those of the images trained on.
    """
    images, labels = train
    fitted, held = hold_out(len(labels), val_fraction)
    mean, std = pixel_statistics(images[fitted])
    return {
        "train": TensorSplit(images[fitted], labels[fitted], mean, std, crop_padding, flip),
        "val": TensorSplit(images[held], labels[held], mean, std),
        "test": TensorSplit(*test, mean, std),
    }


def image_data(settings: Any, source: str, fingerprint: str, classes: int, train: Batch, test: Batch) -> Data:
    """Return the data set ``settings.name`` of (images, labels) pairs, split as ``settings`` say."""
    _, height, width, channels = train[0].shape
    augmentation = {"crop_padding": settings.crop_padding, "flip": settings.flip}
    parts = splits(train, test, val_fraction=settings.val_fraction, **augmentation)
    return Data(settings.name, source, fingerprint, classes, (channels, height, width), **parts)


def folder_data(
    settings: Any, size: int, train: Listing, test: Listing, cache: Path, annotations: Sequence[Path] = ()
) -> Data:
    """Return the data set of two listed image folders below ``settings.root``, decoded once into ``cache``.

    The fingerprint covers all images and ``annotations``. Raises UserError if the classes of the splits
    differ, a file is no image, or an image has not ``size`` x ``size`` pixels.
    """
    root = Path(settings.root)
    classes, samples = joined(root, train, test)
    images, fingerprint = ImageCache(root, [file for file, _ in samples], cache, annotations, size).tensor()
    labels, count = torch.tensor([label for _, label in samples]), len(train[1])
    # the training images are copied as they are split, the test images here: none stays mapped to the file
    pairs = (images[:count], labels[:count]), (images[count:].clone(), labels[count:])
    return image_data(settings, f"image folder {root.name}", fingerprint, len(classes), *pairs)
