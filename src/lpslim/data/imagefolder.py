"""ImageNet and any other ``train/<class>/*``, ``val/<class>/*`` tree, streamed from disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from lpslim.errors import UserError
from lpslim.folders import check_count, list_images, opened
from lpslim.splits import Batch, Data, hold_out

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as its public weights expect
LOOKED_AT = 9
CPU = torch.device("cpu")
Samples = list[tuple[Path, int]]


class _Decoded(Dataset[tuple[Tensor, int]]):
    """Decodes and transforms one image at a time, in the loader's worker processes."""

    def __init__(self, samples: Samples, transform: Any) -> None:
        self.samples, self.transform = samples, transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        with opened(path) as image:
            pixels = image.convert("RGB")
        return self.transform(pixels), label


@dataclass(frozen=True)
class StreamedSplit:
    """A split read from disk by worker processes; the interface of :class:`lpslim.images.Split`.

    Training images: a random resized crop, mirrored half of the time if ``flip``. Evaluation:
    the centre crop of the image resized by 256/224 (the usual ImageNet protocol).
    """

    samples: Samples
    size: int
    flip: bool
    workers: int
    device: torch.device = CPU

    def __len__(self) -> int:
        return len(self.samples)

    def to(self, device: torch.device) -> StreamedSplit:
        """Return the same split, its batches delivered on ``device``."""
        return replace(self, device=device)

    def train_batches(self, batch_size: int, seed: int) -> Iterator[Batch]:
        """Yield one shuffled, augmented epoch of (B, C, H, W) float images and labels (B,)."""
        steps = [v2.RandomResizedCrop(self.size), v2.RandomHorizontalFlip(0.5 if self.flip else 0.0)]
        loader = self._loader(steps, batch_size, shuffle=True, drop_last=True, seed=seed)
        return self._on_device(loader)

    def eval_batches(self, batch_size: int) -> Iterator[Batch]:
        """Yield every image once, in order."""
        steps = [v2.Resize(round(self.size * 256 / 224)), v2.CenterCrop(self.size)]
        return self._on_device(self._loader(steps, batch_size, shuffle=False, drop_last=False, seed=0))

    def _loader(self, steps: list[Any], batch_size: int, *, shuffle: bool, drop_last: bool, seed: int) -> Any:
        finish = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
        return DataLoader(
            _Decoded(self.samples, v2.Compose([*steps, *finish])),
            batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            num_workers=self.workers,
            generator=torch.Generator().manual_seed(seed),  # orders the images and seeds the workers
            pin_memory=self.device.type == "cuda",
        )

    def _on_device(self, loader: Any) -> Iterator[Batch]:
        try:
            for images, labels in loader:
                images = images.to(self.device, non_blocking=True, memory_format=torch.channels_last)
                yield images, labels.to(self.device, non_blocking=True)
        except UserError as problem:  # a worker's comes with the worker's traceback before it
            raise UserError(
                str(problem).strip().splitlines()[-1].partition("UserError: ")[2] or problem
            ) from None


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
    fitted, held = (
        [training[i] for i in part.tolist()] for part in hold_out(len(training), settings.val_fraction)
    )
    size, workers = settings.image_size, settings.workers
    return Data(
        name=settings.name,
        source=f"image folder {root.name}",
        fingerprint=_fingerprint(root, training + test),
        num_classes=len(classes),
        shape=(3, size, size),
        reading=reading(settings),
        train=StreamedSplit(fitted, size, settings.flip, workers),
        val=StreamedSplit(held, size, settings.flip, workers),
        test=StreamedSplit(test, size, settings.flip, workers),
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
