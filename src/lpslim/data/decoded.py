"""Image files: class folders, and a cache of decoded pixels, one safetensors file that is mapped into memory.

A cache file holds ``pixels``, uint8, one RGB image (H, W, 3) after the other, and ``index`` (N, 4): height,
width, start and CRC-32 (begun at width + 1) of each image.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm import tqdm

from lpslim.base.errors import UserError
from lpslim.base.files import atomic_file, clear_scratch, locked

HEADER_BYTES = 1024  # of a cache file
CHUNK = 64  # images decoded ahead of the one being written
SAMPLED = 500  # images whose headers give an estimate of the file's size
Samples = list[tuple[Path, int]]  # image file, class index
Listing = tuple[list[str], Samples]  # class names, sorted
log = logging.getLogger(__name__)


def images_in(folder: Path) -> list[Path]:
    """Return the image files of one folder, sorted; none where there is no such folder."""
    return sorted(path for path in folder.glob("*") if path.suffix.lower() in IMG_EXTENSIONS)


def list_images(root: Path, split: str, below: str = ".") -> Listing:
    """List ``root/split/<class>/below/<image>``; raises UserError where a class or its images are missing."""
    classes = sorted(entry.name for entry in (root / split).iterdir() if entry.is_dir())
    if not classes:
        raise UserError(f"dataset.root={root}: no class folders; expected {root}/{split}/<class>/<image>")
    samples: Samples = []
    for index, name in enumerate(classes):
        folder = root / split / name / below
        if not (images := images_in(folder)):
            raise UserError(f"dataset.root={root}: no image ({', '.join(IMG_EXTENSIONS)}) in {folder}")
        samples += [(image, index) for image in images]
    return classes, samples


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
    except (UserError, FileNotFoundError):
        raise
    except Exception as problem:  # decoders raise whatever the bytes lead them to
        reason = f"{type(problem).__name__}: {problem}"
        raise UserError(f"{file}: cannot be read as an image ({reason})") from problem


def rgb(file: Path, size: int | None = None) -> Image.Image:
    """Return a decoded image in RGB; raises UserError if its height and width are not ``size`` pixels."""
    with opened(file) as image:
        if size is not None and image.size != (size, size):  # before a pixel is decoded
            raise UserError(f"{file}: has {image.width}x{image.height} pixels; expected {size}x{size}")
        return image.convert("RGB")


def sampled_sizes(files: Sequence[Path], count: int) -> list[tuple[int, int]]:
    """Return (width, height) of at most ``count`` images, evenly spaced, from their headers."""
    sizes = []
    for file in files[:: -(-len(files) // count)]:
        with opened(file) as image:
            sizes.append(image.size)
    return sizes


class Decoded:
    """Decoded images by number. Every process maps the file for itself, and loads only what it reads.

    index: (n, 4), height, width, start and CRC-32. fingerprint: SHA-256 of names and bytes of all files.
    """

    def __init__(self, path: Path, fingerprint: str, index: Tensor) -> None:
        self.path, self.fingerprint, self.index, self.intact = path, fingerprint, index, True

    @cached_property
    def pixels(self) -> np.ndarray[Any, Any]:
        """The pixels of all images in the file, flat."""
        with safe_open(self.path, "pt") as file:
            return file.get_tensor("pixels").numpy()

    def image(self, number: int) -> Image.Image | None:
        """Return an image; None from the first on whose pixels are not those that were written.

        The damaged file is then deleted, so that it is made again when it is next loaded.
        """
        if not self.intact:
            return None
        height, width, start, check = self.index[number].tolist()
        with suppress(OSError, SafetensorError):  # another process may have deleted it
            pixels = self.pixels[start : start + 3 * height * width]
            if zlib.crc32(pixels.data, width + 1) == check:
                return Image.fromarray(pixels.reshape(height, width, 3))
            log.warning("%s: is damaged: deleted, and made again when it is next needed", self.path)
            self.path.unlink(missing_ok=True)
        self.intact = False
        return None


@dataclass(frozen=True)
class ImageCache:
    """The decoded pixels of image files, in one file that is made when it is first needed.

    root: folder that the ``files`` lie below. folder: of all caches. annotations: further files that the
    fingerprint covers. size: height and width that every image must have. workers: threads that decode.
    gigabytes: largest size of the file for :meth:`find`.
    """

    root: Path
    files: Sequence[Path]
    folder: Path
    annotations: Sequence[Path] = ()
    size: int | None = None
    workers: int = 1
    gigabytes: float = math.inf

    def find(self, rows: Tensor) -> Decoded | None:
        """Return the images of these numbers; None, logged once, where the file would be too large."""
        if not self._fits:
            return None
        decoded = self.load()
        return Decoded(decoded.path, decoded.fingerprint, decoded.index[rows])

    def tensor(self) -> tuple[Tensor, str]:
        """Return all images, of one ``size``, as (N, size, size, 3) uint8, and their fingerprint."""
        assert self.size is not None
        decoded = self.load()
        if not all(decoded.image(number) for number in range(len(self.files))):
            decoded = self.load()
        return torch.from_numpy(decoded.pixels).view(-1, self.size, self.size, 3), decoded.fingerprint

    def load(self) -> Decoded:
        """Return the decoded images; of several processes one makes the file, and the others wait.

        Raises:
            UserError: a file is no image, or an image has another size.
            OSError: the disk is full, or an image is gone.
        """
        if (decoded := self._read()) is not None:
            return decoded
        with locked(self._path.with_suffix(".lock")):
            clear_scratch(self._path)
            if (decoded := self._read()) is not None:  # another process has made it meanwhile
                return decoded
            if self._path.exists():
                log.warning("%s: is damaged, and made again", self._path)
            try:
                return self._make()
            except OSError as problem:
                problem.filename = problem.filename or str(self._path)  # which a failed write does not say
                raise

    @cached_property
    def _path(self) -> Path:
        listing = hashlib.sha256(PIL.__version__.encode())  # another version may decode to other bits
        for file in (*self.files, *self.annotations):
            status = file.stat()
            line = f"{file.relative_to(self.root)}\0{status.st_size}\0{status.st_mtime_ns}\n"
            listing.update(line.encode())
        return self.folder / f"{listing.hexdigest()[:32]}.safetensors"

    @cached_property
    def _fits(self) -> bool:
        sizes = sampled_sizes(self.files, SAMPLED)
        needed = sum(3 * width * height for width, height in sizes) / len(sizes) * len(self.files) / 1e9
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free / 1e9
        if needed > self.gigabytes:
            limit = f"dataset.cache_gb={self.gigabytes:g}"
        elif free < 2 * needed and not self._path.exists():
            limit = f"{self.folder} has {free:.3g} GB free, less than twice that"
        else:
            return True
        log.info("%s: decoded in every epoch: the cache would take %.3g GB, and %s", self.root, needed, limit)
        return False

    def _read(self) -> Decoded | None:
        """Return the images of the file; None if there is none that can be read."""
        with suppress(OSError, SafetensorError, LookupError, TypeError), safe_open(self._path, "pt") as file:
            return Decoded(self._path, file.metadata()["fingerprint"], file.get_tensor("index"))
        return None

    def _make(self) -> Decoded:
        contents, rows, end, count = hashlib.sha256(), [], 0, len(self.files)
        with atomic_file(self._path) as scratch, open(scratch, "wb") as stream:
            stream.seek(HEADER_BYTES + 4 * 8 * count)  # header and index are known last
            for file, image in zip(self.files, self._images(), strict=True):
                contents.update(self._named(file))
                rows.append((*image.shape[:2], end, zlib.crc32(image.data, image.shape[1] + 1)))
                end += stream.write(image.data)
            for file in self.annotations:
                contents.update(self._named(file))
            index = torch.tensor(rows)
            header = {
                "__metadata__": {"fingerprint": contents.hexdigest()},
                "index": {"dtype": "I64", "shape": [count, 4], "data_offsets": [0, index.nbytes]},
                "pixels": {"dtype": "U8", "shape": [end], "data_offsets": [index.nbytes, index.nbytes + end]},
            }
            text = json.dumps(header).encode().ljust(HEADER_BYTES - 8)  # spaces may follow it
            stream.seek(0)
            stream.write(len(text).to_bytes(8, "little") + text + index.numpy().tobytes())
        log.info("decoded %d images of %s into %s", count, self.root, self._path)
        return Decoded(self._path, contents.hexdigest(), index)

    def _images(self) -> Iterator[np.ndarray[Any, Any]]:
        """Decode ahead of the writer in threads: Pillow decodes outside Python's lock."""
        with ThreadPoolExecutor(max(1, self.workers)) as pool:
            for start in tqdm(range(0, len(self.files), CHUNK), f"decode {self.root.name}", disable=None):
                files = self.files[start : start + CHUNK]
                yield from pool.map(lambda file: np.array(rgb(file, self.size)), files)

    def _named(self, file: Path) -> bytes:
        content = file.read_bytes()
        return f"{file.relative_to(self.root)}\0{len(content)}\0".encode() + content
