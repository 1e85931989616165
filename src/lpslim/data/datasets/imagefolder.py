"""ImageNet, or any other tree of ``train/<class>/*`` and ``val/<class>/*``, read by worker processes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from traceback import clear_frames
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler
from torchvision.transforms import v2

from lpslim.base.errors import UserError
from lpslim.data.decoded import Decoded, ImageCache, Samples, joined, list_images, rgb, sampled_sizes
from lpslim.data.splits import WHOLE, Batch, Data, Parts, Share, hold_out

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as its public weights expect
SAMPLED = 9  # images whose sizes are looked at
CPU = torch.device("cpu")


class _Images(Dataset[tuple[Tensor, int]]):
    """Transforms one image at a time, decoded before or now, in the loader's worker processes."""

    def __init__(self, samples: Samples, transform: Any, decoded: Decoded | None) -> None:
        self.samples, self.transform, self.decoded = samples, transform, decoded

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        image = self.decoded.image(index) if self.decoded else None
        return self.transform(image or rgb(path)), label


@dataclass(frozen=True)
class StreamedSplit:
    """A split read from disk by ``workers`` processes.

    Training images: a random resized crop of ``size`` pixels, mirrored half of the time if ``flip``.
    Evaluation: the centre crop of the image resized by 256/224, the usual ImageNet protocol. ``decoded``
    returns the decoded images of the samples, if there are any: the batches are the same bits.
    """

    samples: Samples
    size: int
    flip: bool
    workers: int
    device: torch.device = CPU
    decoded: Callable[[], Decoded | None] | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def to(self, device: torch.device) -> StreamedSplit:
        """Return the same split, its batches delivered on ``device``."""
        return replace(self, device=device)

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
        finish = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
        loader = DataLoader(
            _Images(self.samples, v2.Compose([*steps, *finish]), self.decoded() if self.decoded else None),
            batch_sampler=batches,  # type: ignore[arg-type]
            num_workers=self.workers,
            generator=generator,  # orders the images and seeds the workers
            worker_init_fn=partial(_seed_worker, others) if others else None,
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
    their contents: reading 150 GB to identify them would take longer than many a run.

    Raises:
        UserError: the folders are not there, their classes differ, or most images are smaller than
            ``settings.image_size``.
    """
    root, size, workers = Path(settings.root), settings.image_size, settings.workers
    if not (root / "train").is_dir() or not (root / "val").is_dir():
        raise UserError(
            f"dataset.root={root}: no images there. Expected {root}/train/<class>/<image> and "
            f"{root}/val/<class>/<image>, for ImageNet with the class folders n01440764 to n15075141"
        )
    train, test = (list_images(root, split) for split in ("train", "val"))
    classes, samples = joined(root, train, test)
    sides = sorted(map(min, sampled_sizes([file for file, _ in train[1]], SAMPLED)))
    if (median := sides[len(sides) // 2]) < size:  # most images would have to be enlarged
        raise UserError(f"dataset.image_size={size}: must be at most {median}, the size of images in {root}")
    decoded = ImageCache(
        root, [file for file, _ in samples], cache, workers=workers, gigabytes=settings.cache_gb
    )

    def split(rows: Tensor) -> StreamedSplit:
        chosen = [samples[row] for row in rows.tolist()]
        return StreamedSplit(chosen, size, settings.flip, workers, decoded=partial(decoded.find, rows))

    fitted, held = hold_out(len(train[1]), settings.val_fraction)
    listing = hashlib.sha256()
    for file, _ in samples:
        listing.update(f"{file.relative_to(root)}\0{file.stat().st_size}\n".encode())
    tested = torch.arange(len(train[1]), len(samples))
    parts: Parts = {"train": split(fitted), "val": split(held), "test": split(tested)}
    source, fingerprint = f"image folder {root.name}", f"listing:{listing.hexdigest()}"
    reading = {"image_size": size, "workers": workers}  # each worker draws its own augmentation
    return Data(settings.name, source, fingerprint, len(classes), (3, size, size), **parts, reading=reading)
