"""Images in memory as uint8, batched, augmented and normalised in a few vector operations.

Shapes: N images, B a batch, H height, W width, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from lpslim.splits import WHOLE, Batch, Parts, Share, hold_out


@dataclass(frozen=True)
class TensorSplit:
    """A split held whole in memory (or on the accelerator).

    images: (N, H, W, C) uint8. labels: (N,) int64. mean, std: (C,) float, in units of
    pixel value. ``crop_padding`` and ``flip`` describe the training augmentation.
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
        """Yield one epoch of shuffled, augmented (B, C, H, W) float batches and labels (B,).

        All draws come from a CPU generator with ``seed``, so every device sees the same
        crops and flips. The last, short batch is left out: batch statistics of a handful
        of images are noise, and another epoch draws other images.
        """
        generator = torch.Generator().manual_seed(seed)
        count, device = len(self), self.images.device
        order = torch.randperm(count, generator=generator)
        shift = torch.randint(2 * self.crop_padding + 1, (2, count), generator=generator)
        mirror = (torch.rand(count, generator=generator) < 0.5) & self.flip
        order, shift, mirror = order.to(device), shift.to(device), mirror.to(device)
        edge = self.crop_padding
        padded = F.pad(self.images, (0, 0, edge, edge, edge, edge)) if edge else self.images
        size = min(batch_size, count)
        part = share.of(size)
        for start in range(0, count - size + 1, size):
            taken = slice(start + part.start, start + part.stop)
            pixels = crop_flip(padded, order[taken], shift[:, taken], mirror[taken], self.images.shape[1:3])
            yield self._normalise(pixels), self.labels[order[taken]]

    def eval_batches(self, batch_size: int, share: Share = WHOLE) -> Iterator[Batch]:
        """Yield every image of the share once, in order, not augmented; the last batch may be short."""
        part = share.of(len(self))
        for start in range(part.start, part.stop, batch_size):
            taken = slice(start, min(start + batch_size, part.stop))
            yield self._normalise(self.images[taken]), self.labels[taken]

    def _normalise(self, pixels: Tensor) -> Tensor:
        scaled = (pixels.float() - self.mean) / self.std
        return scaled.permute(0, 3, 1, 2)  # (B, H, W, C) -> channels-last (B, C, H, W)


def crop_flip(padded: Tensor, index: Tensor, shift: Tensor, mirror: Tensor, size: Sequence[int]) -> Tensor:
    """Gather one crop per image, mirrored where asked, in a single indexing operation.

    padded: (N, H + 2e, W + 2e, C). index, mirror: (B,). shift: (2, B), the crop's top
    and left corner. size: (H, W). Returns (B, H, W, C).
    """
    height, width = size
    rows = shift[0, :, None] + torch.arange(height, device=index.device)  # (B, H)
    across = torch.arange(width, device=index.device)
    across = torch.where(mirror[:, None], width - 1 - across, across)  # (B, W)
    cols = shift[1, :, None] + across
    return padded[index[:, None, None], rows[:, :, None], cols[:, None, :]]


def pixel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the exact mean and standard deviation (C,) of uint8 images (N, H, W, C)."""
    values = torch.arange(256, dtype=torch.float64)
    means, stds = [], []
    for channel in images.unbind(-1):
        share = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        mean = (share * values).sum()
        means.append(mean)
        stds.append((share * (values - mean) ** 2).sum().sqrt())
    return torch.stack(means).float(), torch.stack(stds).float()


def splits(
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    *,
    val_fraction: float,
    crop_padding: int,
    flip: bool,
) -> Parts:
    """Return the ``train``, ``val`` and ``test`` splits of (images, labels) pairs.

    Validation images come out of the training set; mean and deviation are those of
    the images that are trained on.
    """
    images, labels = train
    fitted, held = hold_out(len(labels), val_fraction)
    mean, std = pixel_statistics(images[fitted])
    return {
        "train": TensorSplit(images[fitted], labels[fitted], mean, std, crop_padding, flip),
        "val": TensorSplit(images[held], labels[held], mean, std),
        "test": TensorSplit(*test, mean, std),
    }
