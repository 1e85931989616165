"""Image folders (``<split>/<class>/<image>``) decoded once into a uint8 store."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms.functional import pil_to_tensor
from tqdm import tqdm

from lpslim.base import files
from lpslim.base.errors import UserError

PARTS = ("images", "labels")
Listing = tuple[list[str], list[tuple[Path, int]]]  # class names, sorted; (image file, class index)
log = logging.getLogger(__name__)


def images_in(folder: Path) -> list[Path]:
    """Return the image files of one folder, sorted; none where there is no such folder."""
    return sorted(p for p in folder.glob("*") if p.suffix.lower() in IMG_EXTENSIONS)


def list_images(split: Path, below: str = ".") -> Listing:
    """Return the class names, sorted, and every (image file, class index) of one split.

    The images lie in ``<split>/<class>/<below>``.

    Raises:
        UserError: the folder holds no class folder, or a class without an image.
    """
    if not split.is_dir():
        raise UserError(f"{split}: no such folder")
    classes = sorted(entry.name for entry in split.iterdir() if entry.is_dir())
    if not classes:
        raise UserError(f"{split} holds no class folders; expected {split}/<class>/<image>")
    samples: list[tuple[Path, int]] = []
    for index, name in enumerate(classes):
        files = images_in(split / name / below)
        if not files:
            raise UserError(f"{split / name / below} holds no image ({', '.join(IMG_EXTENSIONS)})")
        samples.extend((file, index) for file in files)
    return classes, samples


def check_count(count: int, where: Path) -> None:
    """Refuse a training set from which nothing can be held out for validation.

    Raises:
        UserError: there are fewer than two samples.
    """
    if count < 2:
        raise UserError(
            f"{where}: holds {count} sample to train on; two are needed, one of them for validation"
        )


def listing_digest(root: Path, files: Iterable[Path]) -> str:
    """Return a SHA-256 over every file's relative name, size and time of change."""
    described = hashlib.sha256()
    for file in files:
        status = os.stat(file)
        described.update(f"{file.relative_to(root)}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return described.hexdigest()


def decode(
    root: Path, listed: Mapping[str, Listing], size: int, cache: Path, annotations: Sequence[Path] = ()
) -> tuple[dict[str, Tensor], str]:
    """Return ``{"<split>.images", "<split>.labels"}`` and the fingerprint of the files' bytes.

    Images are RGB uint8 (N, size, size, 3). The decoded tensors are kept in ``cache``
    under the digest of the listing, so that only the first run opens the image files;
    the fingerprint covers names and contents, and is stored beside them. ``annotations`` are
    files that say what the images show, where their folders do not: they count as well.

    Raises:
        UserError: an image has another size, or the splits disagree about the classes.
    """
    if len({tuple(classes) for classes, _ in listed.values()}) > 1:
        raise UserError(f"{root}: the splits {', '.join(listed)} do not hold the same classes")
    check_count(len(listed["train"][1]), root / "train")
    everything = [file for _, samples in listed.values() for file, _ in samples]
    stored = cache / f"{listing_digest(root, [*everything, *annotations])[:32]}.safetensors"
    if not stored.exists():
        _decode_into(stored, root, listed, size, annotations)
    with safe_open(stored, framework="pt") as file:
        return {
            f"{split}.{part}": file.get_tensor(f"{split}.{part}") for split in listed for part in PARTS
        }, file.metadata()["fingerprint"]


def _decode_into(
    stored: Path, root: Path, listed: Mapping[str, Listing], size: int, annotations: Sequence[Path]
) -> None:
    contents = hashlib.sha256()
    tensors: dict[str, Tensor] = {}
    for split, (_, samples) in listed.items():
        images = torch.empty(len(samples), size, size, 3, dtype=torch.uint8)
        for row, (file, _) in enumerate(tqdm(samples, desc=f"decode {split}", disable=None)):
            data = file.read_bytes()
            contents.update(_named(root, file, data))
            images[row] = _pixels(file, size)
        tensors[f"{split}.images"] = images
        tensors[f"{split}.labels"] = torch.tensor([label for _, label in samples])
    for file in annotations:
        contents.update(_named(root, file, file.read_bytes()))
    with store.beside(stored) as scratch:
        save_file(tensors, scratch, {"fingerprint": contents.hexdigest()})
    log.info("decoded %d images of %s into %s", sum(len(s) for _, s in listed.values()), root, stored)


def _pixels(file: Path, size: int) -> Tensor:
    with opened(file) as image:
        if image.size != (size, size):  # before a pixel is decoded
            raise UserError(f"{file} is {image.size[0]}x{image.size[1]}, not {size}x{size}")
        return pil_to_tensor(image.convert("RGB")).permute(1, 2, 0)


@contextmanager
def opened(file: Path) -> Iterator[Image.Image]:
    """Open an image by Pillow.

    Raises:
        UserError: Pillow cannot read it, here or in the block, or it is so large that it must be a bomb.
        FileNotFoundError: it was listed, and is gone.
    """
    try:
        with Image.open(file) as image:
            yield image
    except (UserError, FileNotFoundError):
        raise
    except Exception as problem:  # decoders raise whatever the bytes lead them to
        raise UserError(
            f"{file}: cannot be read as an image ({type(problem).__name__}: {problem})"
        ) from problem


def rgb(file: Path) -> Image.Image:
    """Return the decoded image in RGB; raises what :func:`opened` does."""
    with opened(file) as image:
        return image.convert("RGB")


def _named(root: Path, file: Path, data: bytes) -> bytes:
    return f"{file.relative_to(root)}\0{len(data)}\0".encode() + data
