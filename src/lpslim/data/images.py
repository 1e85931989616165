"""Images in memory as uint8: batched, augmented and normalised in a few vector operations.

Shapes: N images, B a batch, H height, W width, C channels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from lpslim.base.errors import UserError
from lpslim.data.decoded import Listing, decode, joined, survey
from lpslim.data.splits import WHOLE, Batch, Data, Share, Split, hold_out


@dataclass(frozen=True)
class TensorSplit(Split):
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

    def normalised(self, mean: Sequence[float], std: Sequence[float]) -> Self:
        """Return the same images under another normalisation, for pixels from 0 to 1."""
        return replace(self, mean=255 * torch.tensor(mean), std=255 * torch.tensor(std))

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
        part = share.of(size)
        for start in range(0, count - size + 1, size):
            taken = slice(start + part.start, start + part.stop)
            index = order[taken]
            # padded batch by batch: the whole data set with borders would be half as large again
            padded = F.pad(self.images.index_select(0, index), (0, 0, edge, edge, edge, edge))
            pixels = crop_flip(padded, shift[:, taken], mirror[taken], self.images.shape[1:3])
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


def crop_flip(padded: Tensor, shift: Tensor, mirror: Tensor, size: Sequence[int]) -> Tensor:
    """Return a crop (B, H, W, C) of each image, mirrored where asked, gathered in whole rows of pixels.

    padded: (B, H + 2e, W + 2e, C). shift: (2, B), the crop's top and left corner. mirror: (B,). size: (H, W).
    """
    height, width = size
    count, tall, wide, channels = padded.shape
    numbers, down = torch.arange(count, device=padded.device), torch.arange(height, device=padded.device)
    rows = numbers[:, None] * tall + shift[0, :, None] + down  # (B, H)
    starts = (rows * wide + shift[1, :, None]) * channels
    values, run = padded.flatten(), width * channels
    runs = values.as_strided((len(values) - run + 1, run), (1, 1))  # a row of a crop may start anywhere
    crops = runs.index_select(0, starts.flatten()).view(count, height, width, channels)
    mirrored = crops.permute(0, 3, 1, 2).flip(3).permute(0, 2, 3, 1)  # torch is fast at this order of axes
    return torch.cat((crops, mirrored)).index_select(0, numbers + count * mirror)


def pixel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the exact mean and standard deviation (C,) of uint8 images (N, H, W, C)."""
    values = torch.arange(256, dtype=torch.float64)
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(-1)])
    shares = counts.double() / (images.numel() // len(counts))  # (C, 256)
    means = (shares * values).sum(dim=1)
    return means.float(), (shares * (values - means[:, None]) ** 2).sum(dim=1).sqrt().float()


def image_data(settings: Any, source: str, fingerprint: str, classes: int, train: Batch, test: Batch) -> Data:
    """Return the data set ``settings.name`` of (images, labels) pairs, normalised as those trained on."""
    images, labels = train
    _, height, width, channels = images.shape
    fitted, held = hold_out(len(labels), settings.val_fraction)
    chosen = images[fitted]
    mean, std = pixel_statistics(chosen)
    fit = TensorSplit(chosen, labels[fitted], mean, std, settings.crop_padding, settings.flip)
    val, tested = TensorSplit(images[held], labels[held], mean, std), TensorSplit(*test, mean, std)
    return Data(settings.name, source, fingerprint, classes, (channels, height, width), fit, val, tested)


def folder_data(settings: Any, size: int, train: Listing, test: Listing, cache: Path) -> Data:
    """Return the data set of two listed image folders below ``settings.root``, decoded once into ``cache``.

    UserError if their classes differ, a file is no image, or an image has not ``size`` x ``size`` pixels.
    """
    root = Path(settings.root)
    classes, samples = joined(root, train, test)
    files = [file for file, _ in samples]
    _, reading = survey(files, settings.exif)
    decoded = decode(root, files, cache, settings.workers, settings.exif)
    for (file, _), (height, width, _) in zip(samples, decoded.index.tolist(), strict=True):
        if (height, width) != (size, size):
            raise UserError(f"{file}: has {width}x{height} pixels; expected {size}x{size}")
    pixels = torch.from_file(str(decoded.pixels), size=3 * size**2 * len(samples), dtype=torch.uint8)
    images, labels = pixels.view(-1, size, size, 3), torch.tensor([label for _, label in samples])
    count = len(train[1])
    # the training images are copied as they are split, the test images here: none stays mapped to the file
    pairs = (images[:count], labels[:count]), (images[count:].clone(), labels[count:])
    data = image_data(settings, f"image folder {root.name}", decoded.fingerprint, len(classes), *pairs)
    return replace(data, reading=reading)
