"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), from torchvision's batches or from image folders."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torchvision.datasets import CIFAR10, CIFAR100

from lpslim.base.errors import UserError
from lpslim.data.decoded import list_images
from lpslim.data.images import folder_data, image_data
from lpslim.data.splits import Data

SIZE = 32
KINDS = {"cifar10": (CIFAR10, 10), "cifar100": (CIFAR100, 100)}


def load(settings: Any, cache: Path) -> Data:
    """Return the data set ``settings.name`` from ``settings.root``; downloads it if ``settings.download``.

    Two layouts are read: torchvision's ``cifar-10-batches-py/`` or ``cifar-100-python/``, and
    ``train/<class>/<image>`` with ``test/<class>/<image>``.

    Raises:
        UserError: no such data set, neither layout is there and nothing may be, or could be, downloaded,
            or the images are not of so many classes.
    """
    if settings.name not in KINDS:
        raise UserError(f"dataset.name={settings.name}: must be one of {', '.join(KINDS)}")
    root, (_, expected) = Path(settings.root), KINDS[settings.name]
    if not (root / "train").is_dir() or not (root / "test").is_dir():
        return _torchvision_batches(settings, root)
    train, test = (list_images(root, split) for split in ("train", "test"))
    if (classes := len(train[0])) != expected:
        raise UserError(f"dataset.root={root}: holds {classes} classes; {settings.name} has {expected}")
    return folder_data(settings, SIZE, train, test, cache)


def _torchvision_batches(settings: Any, root: Path) -> Data:
    kind, classes = KINDS[settings.name]
    pairs, contents = [], hashlib.sha256()
    for train in (True, False):
        try:  # torchvision compares the MD5 sums of the files with the published ones
            part = kind(str(root), train=train, download=settings.download)
        except (RuntimeError, OSError) as problem:  # URLError is an OSError
            raise UserError(
                f"dataset.root={root}: no {settings.name} there ({problem}). Expected "
                f"{root}/{kind.base_folder}/, which dataset.download=true fetches, or "
                f"{root}/train/<class>/<image> and {root}/test/<class>/<image>"
            ) from problem
        contents.update(part.data.tobytes())
        pairs.append((torch.from_numpy(part.data), torch.tensor(part.targets)))
    return image_data(settings, "torchvision batches", contents.hexdigest(), classes, *pairs)
