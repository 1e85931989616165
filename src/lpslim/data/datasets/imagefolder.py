"""ImageNet and any other ``train/<class>/*``, ``val/<class>/*`` tree, streamed from disk or decoded once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler
from torchvision.transforms import v2

from lpslim.base.errors import UserError
from lpslim.data.decoded import Pixels, PixelStore, results
from lpslim.data.folders import check_count, list_images, opened, rgb
from lpslim.data.splits import WHOLE, Batch, Data, Share, hold_out

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as its public weights expect
LOOKED_AT = 9
CPU = torch.device("cpu")
Samples = list[tuple[Path, int]]


class _Decoded(Dataset[tuple[Tensor, int]]):
    """Decodes, or finds decoded, and transforms one image at a time, in the loader's worker processes."""

    def __init__(self, samples: Samples, transform: Any, pixels: Pixels | None) -> None:
        self.samples, self.transform, self.pixels = samples, transform, pixels

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        image = self.pixels.image(index) if self.pixels else None
        return self.transform(image or rgb(path)), label


@dataclass(frozen=True)
class StreamedSplit:
    """A split read from disk by worker processes; the interface of :class:`lpslim.data.images.Split`.

    Training images: a random resized crop, mirrored half of the time if ``flip``. Evaluation:
    the centre crop of the image resized by 256/224 (the usual ImageNet protocol). ``decoded`` finds the
    pixels of the samples, decoded once, if it can: the batches are the same bits.
    """

    samples: Samples
    size: int
    flip: bool
    workers: int
    device: torch.device = CPU
    decoded: Callable[[], Pixels | None] | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def to(self, device: torch.device) -> StreamedSplit:
        """Return the same split, its batches delivered on ``device``."""
        return replace(self, device=device)

    def train_batches(self, batch_size: int, seed: int, share: Share = WHOLE) -> Iterator[Batch]:
        """Yield one shuffled, augmented epoch of (B, C, H, W) float images and labels (B,).

        Every process draws the same order, decodes its own images, and augments them by draws of its own.
        """
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
        pixels = self.decoded() if self.decoded else None
        finish = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
        loader = DataLoader(
            _Decoded(self.samples, v2.Compose([*steps, *finish]), pixels),
            batch_sampler=batches,  # type: ignore[arg-type]
            num_workers=self.workers,
            generator=generator,  # orders the images and seeds the workers
            worker_init_fn=partial(_draw_apart, others) if others else None,
            pin_memory=self.device.type == "cuda",
        )
        return self._on_device(loader)

    def _on_device(self, loader: Any) -> Iterator[Batch]:
        for images, labels in results(loader):
            images = images.to(self.device, non_blocking=True, memory_format=torch.channels_last)
            yield images, labels.to(self.device, non_blocking=True)


def _draw_apart(others: int, _: int) -> None:
    """Seed a worker as the one after ``others``, or those of the same number would draw the same."""
    torch.manual_seed(torch.initial_seed() + others)


def reading(settings: Any) -> dict[str, Any]:
    """Return the settings that shape the batches: each worker draws its own augmentation."""
    return {"image_size": settings.image_size, "workers": settings.workers}


def load(settings: Any, cache: Path) -> Data:
    """Return the images below ``settings.root``; ``val`` is the test set, as the field uses it.

    The validation split comes out of ``train``. The fingerprint covers names and sizes of all
    files, not their contents: reading 150 GB to name them would take longer than many a run.

    Raises:
        UserError: the folders are not there, or their classes differ.
    """
    root = Path(settings.root)
    if not (root / "train").is_dir() or not (root / "val").is_dir():
        raise UserError(
            f"dataset.root={root}: no images there. Expected {root}/train/<class>/<image> and "
            f"{root}/val/<class>/<image>, for ImageNet with the class folders n01440764 to n15075141; "
            f"name another place with dataset.root=<folder>"
        )
    classes, training = list_images(root / "train")
    test_classes, test = list_images(root / "val")
    if classes != test_classes:
        raise UserError(f"{root}: train and val do not hold the same classes")
    _check_size(root, training, settings.image_size)
    check_count(len(training), root / "train")
    samples, size, workers = training + test, settings.image_size, settings.workers
    decoded = PixelStore(root, [file for file, _ in samples], cache, settings.store_gb, workers)

    def split(rows: Tensor) -> StreamedSplit:
        chosen = [samples[row] for row in rows.tolist()]
        return StreamedSplit(chosen, size, settings.flip, workers, decoded=partial(decoded.pixels, rows))

    fitted, held = hold_out(len(training), settings.val_fraction)
    return Data(
        name=settings.name,
        source=f"image folder {root.name}",
        fingerprint=_fingerprint(root, samples),
        num_classes=len(classes),
        shape=(3, size, size),
        reading=reading(settings),
        train=split(fitted),
        val=split(held),
        test=split(torch.arange(len(training), len(samples))),
    )


def _check_size(root: Path, samples: Samples, wanted: int) -> None:
    """Refuse an image size that most images of the folder would have to be blown up to.

    Raises:
        UserError: the short side of the median of a few images is smaller, or one is no image.
    """
    looked_at = samples[:: -(-len(samples) // LOOKED_AT)]
    sides = []
    for file, _ in looked_at:
        with opened(file) as image:
            sides.append(min(image.size))
    if (usual := sorted(sides)[len(sides) // 2]) < wanted:
        raise UserError(f"dataset.image_size={wanted}: must be at most {usual}, the size of images in {root}")


def _fingerprint(root: Path, samples: Samples) -> str:
    described = hashlib.sha256()
    for file, _ in samples:
        described.update(f"{file.relative_to(root)}\0{file.stat().st_size}\n".encode())
    return "listing:" + described.hexdigest()
