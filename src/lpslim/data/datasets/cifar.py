"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), from torchvision's own batches or an ImageFolder tree."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100

from lpslim.base.errors import UserError
from lpslim.data.folders import decode, list_images
from lpslim.data.images import splits
from lpslim.data.splits import Data

SIZE = 32
ORIGINALS = {"cifar10": (CIFAR10, 10), "cifar100": (CIFAR100, 100)}


def load(settings: Any, cache: Path) -> Data:
    """Return the data set ``settings.name`` from ``settings.root``; downloads it if ``settings.download``.

    Two layouts are understood: torchvision's ``cifar-10-batches-py/`` or ``cifar-100-python/``, and
    ``train/<class>/<image>`` with ``test/<class>/<image>``.

    Raises:
        UserError: no such data set, neither layout is there and nothing may be, or could be,
            downloaded, or the images are not of so many classes.
    """
    if settings.name not in ORIGINALS:
        raise UserError(f"dataset.name={settings.name}: must be one of {', '.join(ORIGINALS)}")
    classes = ORIGINALS[settings.name][1]
    root = Path(settings.root)
    if (root / "train").is_dir() and (root / "test").is_dir():
        listed = {split: list_images(root / split) for split in ("train", "test")}
        tensors, fingerprint = decode(root, listed, SIZE, cache)
        source = f"image folder {root.name}"
    else:
        tensors, fingerprint = _torchvision_batches(settings.name, root, settings.download)
        source = "torchvision batches"
    if (found := int(tensors["train.labels"].max()) + 1) != classes:
        raise UserError(f"dataset.root={root}: holds {found} classes; {settings.name} has {classes}")
    parts = splits(
        (tensors["train.images"], tensors["train.labels"]),
        (tensors["test.images"], tensors["test.labels"]),
        val_fraction=settings.val_fraction,
        crop_padding=settings.crop_padding,
        flip=settings.flip,
    )
    return Data(settings.name, source, fingerprint, classes, (3, SIZE, SIZE), **parts)


def _torchvision_batches(name: str, root: Path, download: bool) -> tuple[dict[str, Tensor], str]:
    original, _ = ORIGINALS[name]
    tensors: dict[str, Tensor] = {}
    contents = hashlib.sha256()
    for split, train in (("train", True), ("test", False)):
        try:
            # torchvision compares the files' MD5 sums with the published ones before it reads them
            part = original(str(root), train=train, download=download)
        except (RuntimeError, URLError, OSError) as problem:
            raise UserError(
                f"dataset.root={root}: no {name} there ({problem}). Expected "
                f"{root}/{original.base_folder}/ (torchvision's; dataset.download=true fetches it), or "
                f"{root}/train/<class>/<image> and {root}/test/<class>/<image>"
            ) from problem
        contents.update(part.data.tobytes())
        tensors[f"{split}.images"] = torch.from_numpy(part.data)
        tensors[f"{split}.labels"] = torch.tensor(part.targets)
    return tensors, contents.hexdigest()
