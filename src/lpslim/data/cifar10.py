"""CIFAR-10 (Krizhevsky 2009), from torchvision's own batches or from an ImageFolder tree."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor
from torchvision.datasets import CIFAR10

from lpslim.errors import UserError
from lpslim.folders import decode
from lpslim.images import ImageData, splits

SIZE = 32


def load(settings: Any, cache: Path) -> ImageData:
    """Return CIFAR-10 from ``settings.root``; downloads it there if ``settings.download``.

    Two layouts are understood: torchvision's ``cifar-10-batches-py/`` and
    ``train/<class>/<image>`` with ``test/<class>/<image>``.

    Raises:
        UserError: neither layout is there and nothing may be, or could be, downloaded.
    """
    root = Path(settings.root)
    if (root / "train").is_dir() and (root / "test").is_dir():
        tensors, fingerprint = decode(root, ("train", "test"), SIZE, cache)
        source = f"image folder {root.name}"
    else:
        tensors, fingerprint = _torchvision_batches(root, settings.download)
        source = "torchvision batches"
    parts = splits(
        (tensors["train.images"], tensors["train.labels"]),
        (tensors["test.images"], tensors["test.labels"]),
        val_fraction=settings.val_fraction,
        crop_padding=settings.crop_padding,
        flip=settings.flip,
    )
    return ImageData("cifar10", source, fingerprint, 10, (3, SIZE, SIZE), **parts)


def _torchvision_batches(root: Path, download: bool) -> tuple[dict[str, Tensor], str]:
    tensors: dict[str, Tensor] = {}
    contents = hashlib.sha256()
    for name, train in (("train", True), ("test", False)):
        try:
            # torchvision compares the files' MD5 sums with the published ones before it reads them
            part = CIFAR10(str(root), train=train, download=download)
        except (RuntimeError, URLError, OSError) as problem:
            raise UserError(
                f"dataset.root={root}: no CIFAR-10 there ({problem}). Expected "
                f"{root}/cifar-10-batches-py/ (torchvision's; dataset.download=true fetches it), or "
                f"{root}/train/<class>/<image> and {root}/test/<class>/<image>"
            ) from problem
        contents.update(part.data.tobytes())
        tensors[f"{name}.images"] = torch.from_numpy(part.data)
        tensors[f"{name}.labels"] = torch.tensor(part.targets)
    return tensors, contents.hexdigest()
