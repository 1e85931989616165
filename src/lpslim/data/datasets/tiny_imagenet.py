"""Tiny-ImageNet: 200 classes of ImageNet at 64 pixels (Le and Yang, Stanford CS 231N, 2015).

100,000 training images and 10,000 for the test, 1.4 GB in memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lpslim.base.errors import UserError
from lpslim.data.folders import Listing, decode, images_in, list_images
from lpslim.data.images import splits
from lpslim.data.splits import Data

SIZE = 64
ARCHIVE = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
ANNOTATIONS = "val_annotations.txt"


def load(settings: Any, cache: Path) -> Data:
    """Return the images below ``settings.root``; ``val`` is the test set (that of the archive has no labels).

    Two layouts are understood, for each split on its own: the archive's (``train/<class>/images/*``,
    ``val/images/*`` with ``val/val_annotations.txt``) and ``train/<class>/<image>`` with
    ``val/<class>/<image>``. Classes are numbered in the order of their names.

    Raises:
        UserError: images or annotations are missing, or train, val and the archive's list of
            classes (``wnids.txt``) disagree.
    """
    root = Path(settings.root)
    if not (root / "train").is_dir() or not (root / "val").is_dir():
        raise _incomplete(root, "no images there")
    annotations = root / "val" / ANNOTATIONS
    annotated = (root / "val" / "images").is_dir()
    if annotated and not annotations.is_file():
        raise _incomplete(root, f"val/images without val/{ANNOTATIONS}")
    training = _class_folders(root / "train")
    classes, _ = training
    _check_names(root / "wnids.txt", classes)
    test = _annotated(annotations, classes) if annotated else _class_folders(root / "val")
    listed = {"train": training, "val": test}
    tensors, fingerprint = decode(root, listed, SIZE, cache, [annotations] if annotated else [])
    parts = splits(
        (tensors["train.images"], tensors["train.labels"]),
        (tensors["val.images"], tensors["val.labels"]),
        val_fraction=settings.val_fraction,
        crop_padding=settings.crop_padding,
        flip=settings.flip,
    )
    shape = (3, SIZE, SIZE)
    return Data(settings.name, f"image folder {root.name}", fingerprint, len(classes), shape, **parts)


def _incomplete(root: Path, what: str) -> UserError:
    return UserError(
        f"dataset.root={root}: {what}. Expected the content of {ARCHIVE}: {root}/train/<class>/images/* and "
        f"{root}/val/images/* with {root}/val/{ANNOTATIONS}, or {root}/train/<class>/<image> and "
        f"{root}/val/<class>/<image>"
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as problem:
        raise UserError(f"{path}: is not UTF-8 text ({problem})") from problem


def _class_folders(split: Path) -> Listing:
    deeper = any(entry.is_dir() for entry in split.glob("*/images"))
    return list_images(split, below="images" if deeper else ".")


def _check_names(listed: Path, classes: list[str]) -> None:
    """Refuse, where the archive's list is there, an archive of which only a part was unpacked."""
    named = set(_text(listed).split()) if listed.is_file() else set(classes)
    if differing := sorted(named ^ set(classes)):
        raise UserError(
            f"{listed}: names {len(named)} classes, but {listed.parent / 'train'} holds {len(classes)}; "
            f"{differing[0]} is in one of them alone"
        )


def _annotated(annotations: Path, classes: list[str]) -> Listing:
    """Return the images that the annotation file lists with their classes, separated by tabs."""
    images = {file.name: file for file in images_in(annotations.parent / "images")}
    labels: dict[str, str] = {}
    for number, line in enumerate(_text(annotations).splitlines(), start=1):
        name, label, *_ = [*line.split("\t"), ""]
        if name not in images or label not in classes:
            raise UserError(
                f"{annotations}, line {number}: expected an image of {annotations.parent / 'images'} and a "
                f"class of train, found {name!r} and {label!r}"
            )
        labels[name] = label
    if unnamed := sorted(images.keys() - labels.keys()):
        raise UserError(f"{annotations}: does not name {images[unnamed[0]]}")
    found = sorted(set(labels.values()))
    return found, [(images[name], found.index(label)) for name, label in sorted(labels.items())]
