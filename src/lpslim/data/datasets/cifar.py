"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), from torchvision's batches or from image folders."""

import hashlib
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torchvision.datasets import CIFAR10, CIFAR100

from lpslim.base.errors import UserError
from lpslim.data.decoded import list_images
from lpslim.data.images import folder_data, image_data
from lpslim.data.splits import Data

SOURCES = {"cifar10": (CIFAR10, 10), "cifar100": (CIFAR100, 100)}
REPLACED = "FROM_JPEG.txt"  # beside lossless images: names those that come from a JPEG copy, a line each


def load(settings: Any, cache: Path) -> Data:
    """Return the data set ``settings.name`` from ``settings.root``; downloads it if ``settings.download``.

    Two layouts are read: torchvision's ``cifar-10-batches-py/`` or ``cifar-100-python/``, and
    ``train/<class>/<image>`` with ``test/<class>/<image>``. A list FROM_JPEG.txt beside these folders says
    that all other images are lossless, and so does the source. UserError: no such data set, neither layout
    is there nor can be downloaded, or the images are not of so many classes.
    """
    if settings.name not in SOURCES:
        raise UserError(f"dataset.name={settings.name}: must be one of {', '.join(SOURCES)}")
    root, (kind, classes) = Path(settings.root), SOURCES[settings.name]
    if (root / "train").is_dir() or (root / "test").is_dir():
        train, test = (list_images(root, split) for split in ("train", "test"))
        if (number := len(train[0])) != classes:
            raise UserError(f"dataset.root={root}: holds {number} classes; {settings.name} has {classes}")
        data = folder_data(settings, 32, train, test, cache)
        files = {str(file.relative_to(root)) for file, _ in (*train[1], *test[1])}
        return replace(data, source=_copy(root, files)) if (root / REPLACED).is_file() else data
    try:  # torchvision compares the MD5 sums of the files with the published ones
        parts = [kind(str(root), train=train, download=settings.download) for train in (True, False)]
    except (RuntimeError, OSError) as problem:  # URLError is an OSError
        ways = f"{kind.base_folder}/, which dataset.download=true fetches, or <split>/<class>/<image>"
        where = f"dataset.root={root}: no {settings.name} there ({problem})"
        raise UserError(f"{where}; expected {ways}") from problem
    fingerprint = hashlib.sha256(b"".join(part.data.tobytes() for part in parts)).hexdigest()
    pairs = [(torch.from_numpy(part.data), torch.tensor(part.targets)) for part in parts]
    return image_data(settings, "torchvision batches", fingerprint, classes, *pairs)


def _copy(root: Path, files: Collection[str]) -> str:
    """Return the source of lossless ``files`` in words; UserError if the list names others than these."""
    try:
        names = {line.strip() for line in (root / REPLACED).read_text("utf-8").splitlines() if line.strip()}
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(f"{root / REPLACED}: expected a file of UTF-8 text ({problem})") from problem
    if odd := sorted(names.difference(files)):
        raise UserError(f"{root / REPLACED}: lists {odd[0]!r}, which is not there")
    return f"lossless copy, {len(names)} of {len(files)} images replaced"
