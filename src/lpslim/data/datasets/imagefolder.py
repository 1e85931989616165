"""ImageNet, or any other tree of ``train/<class>/*`` and ``val/<class>/*``, read by worker processes."""

import functools
import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from traceback import clear_frames
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler
from torchvision.transforms import v2

from lpslim.base.errors import UserError
from lpslim.data.decoded import Decoded, Samples, decode, joined, list_images, rgb, survey
from lpslim.data.splits import WHOLE, Batch, Data, Share, Split, hold_out
from lpslim.models.weights import IMAGENET

MEAN, STD = IMAGENET
CPU = torch.device("cpu")
log = logging.getLogger(__name__)


class _Images(Dataset[tuple[Tensor, int]]):
    """Transforms one image at a time, decoded before or now, in the loader's worker processes."""

    def __init__(self, samples: Samples, transform: Any, decoded: Decoded | None, exif: bool) -> None:
        self.samples, self.transform, self.decoded, self.exif = samples, transform, decoded, exif

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        return self.transform(self.decoded.image(index) if self.decoded else rgb(path, self.exif)), label


@dataclass(frozen=True)
class StreamedSplit(Split):
    """A split read from disk by ``workers`` processes.

    Training images: a random resized crop of ``size`` pixels, mirrored half of the time if ``flip``.
    Evaluation: the centre crop of the image resized by 256/224, the usual ImageNet protocol. ``decoded``
    returns the images as decoded once; without it they are decoded anew, to the same bits, ``exif`` as in
    :func:`rgb`.
    """

    samples: Samples
    size: int
    flip: bool
    workers: int
    device: torch.device = CPU
    decoded: Callable[[], Decoded] | None = None
    exif: bool = False
    mean: Sequence[float] = MEAN
    std: Sequence[float] = STD

    def __len__(self) -> int:
        return len(self.samples)

    def to(self, device: torch.device) -> Self:
        """Return the same split, its batches delivered on ``device``."""
        return replace(self, device=device)

    def normalised(self, mean: Sequence[float], std: Sequence[float]) -> Self:
        """Return the same images under another normalisation, for pixels from 0 to 1."""
        return replace(self, mean=mean, std=std)

    def train_batches(self, batch_size: int, seed: int, share: Share = WHOLE) -> Iterator[Batch]:
        """Yield one epoch; all processes draw the same order, and each draws the crops of its own images."""
        steps = [v2.RandomResizedCrop(self.size), v2.RandomHorizontalFlip(0.5 if self.flip else 0.0)]
        generator = torch.Generator().manual_seed(seed)
        order = BatchSampler(RandomSampler(self.samples, generator=generator), batch_size, drop_last=True)
        batches = (batch[share.of(batch_size)] for batch in order)
        return self._loaded(steps, batches, generator, share.rank * self.workers)

    def eval_batches(self, batch_size: int, share: Share = WHOLE) -> Iterator[Batch]:
        """Yield every image of the share once, in order."""
        steps = [v2.Resize(round(self.size * 256 / 224)), v2.CenterCrop(self.size)]
        order = range(len(self))[share.of(len(self))]
        batches = (order[i : i + batch_size] for i in range(0, len(order), batch_size))
        return self._loaded(steps, batches, torch.Generator().manual_seed(0))

    def _loaded(
        self, steps: list[Any], batches: Iterator[Sequence[int]], generator: torch.Generator, others: int = 0
    ) -> Iterator[Batch]:
        """Yield the batches of image numbers; ``others``: workers of the processes before this one."""
        finish = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(self.mean, self.std)]
        loader = DataLoader(
            _Images(self.samples, v2.Compose([*steps, *finish]), self.decoded and self.decoded(), self.exif),
            batch_sampler=batches,  # type: ignore[arg-type]
            num_workers=self.workers,
            generator=generator,  # orders the images and seeds the workers
            worker_init_fn=functools.partial(_seed_worker, others),
            pin_memory=self.device.type == "cuda",
        )
        try:
            for images, labels in loader:
                images = images.to(self.device, non_blocking=True, memory_format=torch.channels_last)
                yield images, labels.to(self.device, non_blocking=True)
        except UserError as problem:
            clear_frames(problem.__traceback__)  # they hold the workers, who would live on with the traceback
            # a worker's error has its whole traceback for a message
            raise UserError(str(problem).strip().rpartition("UserError: ")[2]) from None


def _seed_worker(others: int, _: int) -> None:
    """Seed a worker as the one after ``others``: those of equal number would draw the same."""
    torch.manual_seed(torch.initial_seed() + others)


def load(settings: Any, cache: Path) -> Data:
    """Return the images below ``settings.root``; ``val`` is the test set, as the field uses it.

    The validation split comes out of ``train``. The fingerprint covers names and sizes of all files, not
    their contents: reading 150 GB to identify them would take longer than many a run. UserError if images
    are missing, the splits' classes differ, or most images are smaller than ``settings.image_size``.
    """
    root, size, workers = Path(settings.root), settings.image_size, settings.workers
    train, test = (list_images(root, split) for split in ("train", "val"))
    classes, samples = joined(root, train, test)
    files = [file for file, _ in samples]
    sizes, reading = survey(files, settings.exif)
    if (median := sorted(map(min, sizes))[len(sizes) // 2]) < size:  # most images would have to be enlarged
        raise UserError(f"dataset.image_size={size}: must be at most {median}, the size of images in {root}")
    gigabytes = sum(3 * width * height for width, height in sizes) / len(sizes) * len(files) / 1e9
    cached = gigabytes <= settings.cache_gb
    if not cached:
        log.info("%s: decoded in every epoch: %.3g GB are more than dataset.cache_gb", root, gigabytes)
    images = functools.cache(functools.partial(decode, root, files, cache, workers, settings.exif))

    def split(rows: Tensor) -> StreamedSplit:
        chosen = [samples[row] for row in rows.tolist()]
        taken = (lambda: replace(images(), index=images().index[rows])) if cached else None
        return StreamedSplit(chosen, size, settings.flip, workers, CPU, taken, settings.exif)

    listing = hashlib.sha256()
    for file in files:
        if not (length := file.stat().st_size):
            raise UserError(f"{file}: is empty")
        listing.update(os.fsencode(f"{file.relative_to(root)}\0{length}\n"))
    source, fingerprint = f"image folder {root.name}", f"listing:{listing.hexdigest()}"
    fit, val = map(split, hold_out(len(train[1]), settings.val_fraction))
    tested, shape = split(torch.arange(len(train[1]), len(samples))), (3, size, size)
    reading |= {"image_size": size, "workers": workers}  # each worker draws its own augmentation
    return Data(settings.name, source, fingerprint, len(classes), shape, fit, val, tested, reading=reading)
