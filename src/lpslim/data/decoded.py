"""Image files: class folders, and a cache of their decoded pixels.

A cache is a folder of two files: ``pixels``, uint8, one RGB image (H, W, 3) after the other, and
``index.safetensors``, the (N, 3) heights, widths and starts of the images.
"""

import hashlib
import logging
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torchvision.datasets import ImageFolder
from tqdm import tqdm

from lpslim.base.errors import UserError
from lpslim.base.files import clear_scratch, locked, new_folder

PIXELS, INDEX = "pixels", "index.safetensors"  # files of a cache
CHUNK = 64  # images decoded ahead of the one being written
SAMPLED = 500  # images whose sizes stand for those of all
Files = Sequence[Path]
Samples = list[tuple[Path, int]]  # image file, class index
Listing = tuple[list[str], Samples]  # class names, sorted
log = logging.getLogger(__name__)


def list_images(root: Path, split: str) -> Listing:
    """List the images below ``root/split/<class>``; raises UserError where there are no classes or images."""
    try:
        images = ImageFolder(root / split)
    except OSError as problem:
        raise UserError(f"dataset.root={root}: {problem}; expected {split}/<class>/<image>") from problem
    return images.classes, [(Path(file), label) for file, label in images.samples]


def joined(root: Path, train: Listing, test: Listing) -> Listing:
    """Return the samples of two splits, training first; raises UserError if their classes differ."""
    if odd := sorted(set(train[0]) ^ set(test[0])):
        raise UserError(f"dataset.root={root}: class {odd[0]} must be in the training and in the test set")
    return train[0], [*train[1], *test[1]]


@contextmanager
def opened(file: Path) -> Iterator[Image.Image]:
    """Open an image file; raises UserError if Pillow cannot read it, here or inside the block."""
    try:
        with Image.open(file) as image:
            yield image
    except Exception as problem:  # decoders raise whatever the bytes lead them to
        reason = f"{type(problem).__name__}: {problem}"
        raise UserError(f"{file}: cannot be read as an image ({reason})") from problem


def rgb(file: Path) -> Image.Image:
    """Return a decoded image in RGB; errors as :func:`opened`."""
    with opened(file) as image:
        return image.convert("RGB")


def sampled_sizes(files: Files) -> list[tuple[int, int]]:
    """Return (width, height) of at most 500 images, evenly spaced, from their headers."""
    sizes = []
    for file in files[:: -(-len(files) // SAMPLED)]:
        with opened(file) as image:
            sizes.append(image.size)
    return sizes


@dataclass(frozen=True)
class Decoded:
    """Decoded images, each read when it is wanted.

    index: (n, 3), height, width, and start in the file ``pixels``. fingerprint: SHA-256 of names and files.
    """

    pixels: Path
    index: Tensor
    fingerprint: str

    def image(self, number: int) -> Image.Image:
        """Return one image."""
        height, width, start = self.index[number].tolist()
        pixels = np.fromfile(self.pixels, np.uint8, 3 * height * width, offset=start)
        return Image.fromarray(pixels.reshape(height, width, 3))


def decode(root: Path, files: Files, folder: Path, workers: int) -> Decoded:
    """Return the images of ``files`` below ``root``, decoded once into a cache below ``folder``.

    Of several processes one decodes, in ``workers`` threads, and the others wait. UserError if a file is no
    image; OSError if the disk is full.
    """
    listing = hashlib.sha256(PIL.__version__.encode())  # another Pillow may give other bits
    for file in files:
        status = file.stat()
        listing.update(f"{file.relative_to(root)}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    path = folder / listing.hexdigest()[:32]
    with locked(path.with_suffix(".lock")):
        return _read(path) or _make(path, root, files, workers)


def _read(path: Path) -> Decoded | None:
    """Return the images of a cache; None if there is none, or it is not whole."""
    try:
        with safe_open(path / INDEX, "pt") as file:
            index, fingerprint = file.get_tensor("index"), file.metadata()["fingerprint"]
        size = (path / PIXELS).stat().st_size
    except (OSError, SafetensorError):
        return None
    whole = size == 3 * index[:, :2].prod(dim=1).sum()
    return Decoded(path / PIXELS, index, fingerprint) if whole else None


def _make(path: Path, root: Path, files: Files, workers: int) -> Decoded:
    clear_scratch(path)
    if path.exists():
        log.warning("%s: is damaged, and made again", path)
        shutil.rmtree(path)
    contents, rows, end = hashlib.sha256(), [], 0
    try:
        with new_folder(path) as scratch:
            with open(scratch / PIXELS, "wb") as stream:
                for file, image in zip(files, _images(files, workers), strict=True):
                    content = file.read_bytes()
                    contents.update(f"{file.relative_to(root)}\0{len(content)}\0".encode() + content)
                    rows.append((*image.shape[:2], end))
                    end += stream.write(image.data)
            index, fingerprint = torch.tensor(rows), contents.hexdigest()
            save_file({"index": index}, scratch / INDEX, {"fingerprint": fingerprint})
    except OSError as problem:
        problem.filename = problem.filename or str(path)  # which a failed write does not say
        raise
    log.info("decoded %d images of %s into %s", len(rows), root, path)
    return Decoded(path / PIXELS, index, fingerprint)


def _images(files: Files, workers: int) -> Iterator[np.ndarray[Any, Any]]:
    """Decode ahead of the writer in threads: Pillow decodes outside Python's lock."""
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for start in tqdm(range(0, len(files), CHUNK), "decode images", disable=None):
            yield from pool.map(lambda file: np.array(rgb(file)), files[start : start + CHUNK])
