"""Tiny-ImageNet: 200 classes of ImageNet at 64 pixels (Le and Yang, Stanford CS 231N, 2015).

100,000 training images and 10,000 for the test, 1.4 GB in memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lpslim.base.errors import UserError
from lpslim.data.decoded import Listing, images_in, list_images
from lpslim.data.images import folder_data
from lpslim.data.splits import Data

SIZE = 64
ARCHIVE = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
ANNOTATIONS = "val_annotations.txt"


def load(settings: Any, cache: Path) -> Data:
    """Return the images below ``settings.root``; ``val`` is the test set (the archive's has no labels).

    Two layouts are read, for each split on its own: the archive's (``train/<class>/images/*``,
    ``val/images/*`` with ``val/val_annotations.txt``) and ``<split>/<class>/<image>``. Classes are numbered
    in the order of their names.

    Raises:
        UserError: images or annotations are missing, or train and val disagree about the classes.
    """
    root = Path(settings.root)
    annotations = root / "val" / ANNOTATIONS
    annotated = (root / "val" / "images").is_dir()
    if not (root / "train").is_dir() or not (root / "val").is_dir() or annotated > annotations.is_file():
        raise UserError(
            f"dataset.root={root}: no complete Tiny-ImageNet there. Expected the content of {ARCHIVE}: "
            f"{root}/train/<class>/images/* and {root}/val/images/* with {annotations}, or "
            f"{root}/train/<class>/<image> and {root}/val/<class>/<image>"
        )
    train = list_images(root, "train", "images" if any((root / "train").glob("*/images")) else ".")
    test = _annotated(annotations) if annotated else list_images(root, "val")
    return folder_data(settings, SIZE, train, test, cache, [annotations] if annotated else [])


def _annotated(annotations: Path) -> Listing:
    """Return the images that the annotation file lists with their classes, separated by tabs."""
    images = {file.name: file for file in images_in(annotations.parent / "images")}
    try:
        rows = [line.split("\t") for line in annotations.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as problem:
        raise UserError(f"{annotations}: is not UTF-8 text ({problem})") from problem
    labels = {row[0]: row[1] for row in rows if len(row) > 1}
    if odd := sorted(images.keys() ^ labels.keys()):
        raise UserError(
            f"{annotations}: {odd[0]!r} must be both in it and in {annotations.parent / 'images'}"
        )
    used = sorted(set(labels.values()))
    return used, [(images[name], used.index(label)) for name, label in sorted(labels.items())]
