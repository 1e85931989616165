"""Tiny-ImageNet: 110,000 images of 200 classes at 64 pixels (Le and Yang, Stanford CS 231N, 2015).

Archive: http://cs231n.stanford.edu/tiny-imagenet-200.zip. 1.4 GB in memory.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from lpslim.base.errors import UserError
from lpslim.base.files import digest, file_hash
from lpslim.data.decoded import READ, Listing, list_images
from lpslim.data.images import folder_data
from lpslim.data.splits import Data

SIZE = 64


def load(settings: Any, cache: Path) -> Data:
    """Return the images below ``settings.root``; ``val`` is the test set (the archive's has no labels).

    ``val`` is read as in the archive (``images/*`` with ``val_annotations.txt``) or as ``<class>/<image>``.
    UserError if images or annotations are missing, or train and val have other classes.
    """
    root = Path(settings.root)
    train, annotations = list_images(root, "train"), root / "val" / "val_annotations.txt"
    if not (root / "val" / "images").is_dir():
        return folder_data(settings, SIZE, train, list_images(root, "val"), cache)
    data = folder_data(settings, SIZE, train, _annotated(annotations), cache)
    # the names of the files do not tell their labels
    return replace(data, fingerprint=digest([data.fingerprint, file_hash(annotations)]))


def _annotated(annotations: Path) -> Listing:
    """Return the images that the annotation file lists with their classes, separated by tabs."""
    folder = annotations.parent / "images"
    try:
        rows = [line.split("\t") for line in annotations.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(f"{annotations}: expected a file of UTF-8 text ({problem})") from problem
    labels = {row[0]: row[1] for row in rows if len(row) > 1}
    images = {file.name for file in folder.glob("[!.]*") if file.suffix.lower() in READ}
    if odd := sorted(labels.keys() ^ images):
        raise UserError(f"{annotations}: {odd[0]!r} must be both in it and in {folder}")
    used = sorted(set(labels.values()))
    return used, [(folder / name, used.index(label)) for name, label in sorted(labels.items())]
