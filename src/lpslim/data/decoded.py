"""Image files: class folders, and a cache of their decoded pixels.

A cache is a folder of two files: ``pixels``, uint8, one RGB image (H, W, 3) after the other, and
``index.safetensors``, the (N, 3) heights, widths and starts of the images.
"""

import hashlib
import logging
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import ExifTags, Image, ImageOps
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from lpslim.base.errors import UserError, listed
from lpslim.base.files import clear_scratch, locked, new_folder

PIXELS, INDEX = "pixels", "index.safetensors"  # files of a cache
RULE = 2  # of decoding; another one decodes anew
CHUNK = 64  # images decoded ahead of the one being written
SAMPLED = 500  # images whose headers stand for those of all
# what torchvision's ImageFolder reads, whose import takes seconds, and four more
SUFFIXES = ".jpg .jpeg .png .ppm .bmp .pgm .tif .tiff .webp .jfif .jpe .gif .avif"
READ = {*SUFFIXES.split()} & Image.registered_extensions().keys()
DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")  # modes of more than 8 bits
Files = Sequence[Path]
Samples = list[tuple[Path, int]]  # image file, class index
Listing = tuple[list[str], Samples]  # class names, sorted
log = logging.getLogger(__name__)


def list_images(root: Path, split: str) -> Listing:
    """List the images below ``root/split/<class>``; raises UserError where there are no classes or images.

    Hidden files and folders, and files of other kinds, are left out; the log tells how many of each.
    """
    top, classes, left, found = str(root / split), list[str](), Counter[str](), []

    def refuse(reason: object) -> None:
        raise UserError(f"dataset.root={root}: {reason}; expected {split}/<class>/<image>")

    for place, folders, names in os.walk(top, onerror=refuse, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        class_name = place[len(top) + 1 :].partition(os.sep)[0]
        classes = classes if class_name else sorted(folders)
        for name in names:
            kind = os.path.splitext(name)[1].lower() or "without an ending"
            kind = "hidden" if name.startswith(".") else kind
            if class_name and kind in READ:
                found.append((class_name, place, name))
            else:
                left["beside the class folders" if kind in READ else kind] += 1
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(left.items()))
    if kinds:
        log.info("%s: left out %d files: %s", top, left.total(), kinds)
    if not classes or (empty := sorted({*classes}.difference(name for name, _, _ in found))):
        reason = f"no image of {listed(empty)}" if classes else "no class folders"
        refuse(f"{reason}{f' (left out: {kinds})' if kinds else ''}")
    numbers = {name: number for number, name in enumerate(classes)}
    return classes, [(Path(place, name), numbers[class_name]) for class_name, place, name in sorted(found)]


def joined(root: Path, train: Listing, test: Listing) -> Listing:
    """Return the samples of two splits, training first; raises UserError if their classes differ."""
    alone = {"training": sorted({*train[0]} - {*test[0]}), "test": sorted({*test[0]} - {*train[0]})}
    if odd := "; ".join(f"in the {name} set alone: {listed(some)}" for name, some in alone.items() if some):
        raise UserError(f"dataset.root={root}: class folders differ: {odd}")
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


def rgb(file: Path, exif: bool = False) -> Image.Image:
    """Return a decoded image in RGB of 8 bits, of several the first; errors as :func:`opened`.

    Grey values of 16 bits are divided by 257, floats multiplied by 255: those not from 0 to 1 are refused,
    and so are whole numbers of 32 bits, of which none is known to be white. exif: whether to turn the image
    as its EXIF orientation says.
    """
    with opened(file) as image:
        turned = ImageOps.exif_transpose(image) if exif and _rotated(image) else image
        if image.mode not in DEEP:
            return turned.convert("RGB")
        values, white = np.asarray(turned), 1.0 if image.mode == "F" else 65535
        known = image.mode != "I" or image.format in ("PNG", "PPM")  # Pillow's mode for some of 16 bits
        if not (known and 0 <= values.min() <= values.max() <= white):
            pixels = f"{values.dtype} pixels from {values.min():g} to {values.max():g}"
            raise ValueError(f"{pixels}; must be of 8 or 16 bits, or floats from 0 to 1")
        return Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8)).convert("RGB")


def _rotated(image: Image.Image) -> bool:
    try:
        return image.getexif().get(ExifTags.Base.Orientation) in range(2, 9)
    except SyntaxError:  # no EXIF that Pillow understands
        return False


def survey(files: Files, exif: bool) -> tuple[list[tuple[int, int]], dict[str, Any]]:
    """Return (width, height) of at most 500 images, evenly spaced, and what shapes pixels beside the files.

    The latter is for stage keys, see :class:`Data`: EXIF rotations that are applied (``exif``), and values of
    more than 8 bits that are scaled. Rotations that are ignored are counted in the log.
    """
    sizes, rotated, scaled, sample = [], 0, False, files[:: -(-len(files) // SAMPLED)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Corrupt EXIF data")
        for file in sample:
            with opened(file) as image:
                sizes.append(image.size)
                scaled |= image.mode in DEEP
                rotated += _rotated(image)
    if rotated and not exif:
        ignored = "have an EXIF rotation that is ignored: dataset.exif=true applies it"
        log.info("%d of %d images %s", rotated, len(sample), ignored)
    return sizes, {name: True for name, held in (("exif", exif), ("scaled", scaled)) if held}


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


def decode(root: Path, files: Files, folder: Path, workers: int, exif: bool = False) -> Decoded:
    """Return the images of ``files`` below ``root``, decoded once into a cache below ``folder``.

    Of several processes one decodes, in ``workers`` threads, and the others wait. exif: as of :func:`rgb`.
    UserError if a file is no image; OSError if the disk is full.
    """
    # another Pillow may give other bits
    listing = hashlib.sha256(f"{PIL.__version__} {RULE} {exif}\0".encode())
    for file in files:
        status = file.stat()
        listing.update(os.fsencode(f"{file.relative_to(root)}\0{status.st_size}\0{status.st_mtime_ns}\n"))
    path = folder / listing.hexdigest()[:32]
    with locked(path.with_suffix(".lock")):
        return _read(path) or _make(path, root, files, _images(files, workers, exif))


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


def _make(path: Path, root: Path, files: Files, images: Iterator[np.ndarray[Any, Any]]) -> Decoded:
    clear_scratch(path)
    if path.exists():
        log.warning("%s: is damaged, and made again", path)
        shutil.rmtree(path)
    contents, rows, end = hashlib.sha256(), [], 0
    try:
        with new_folder(path) as scratch:
            with open(scratch / PIXELS, "wb") as stream:
                for file, image in zip(files, images, strict=True):
                    content = file.read_bytes()
                    contents.update(os.fsencode(f"{file.relative_to(root)}\0{len(content)}\0") + content)
                    rows.append((*image.shape[:2], end))
                    end += stream.write(image.data)
            index, fingerprint = torch.tensor(rows), contents.hexdigest()
            save_file({"index": index}, scratch / INDEX, {"fingerprint": fingerprint})
    except OSError as problem:
        problem.filename = problem.filename or str(path)  # which a failed write does not say
        raise
    log.info("decoded %d images of %s into %s", len(rows), root, path)
    return Decoded(path / PIXELS, index, fingerprint)


def _images(files: Files, workers: int, exif: bool) -> Iterator[np.ndarray[Any, Any]]:
    """Decode ahead of the writer in threads: Pillow decodes outside Python's lock."""
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for start in tqdm(range(0, len(files), CHUNK), "decode images", disable=None):
            yield from pool.map(lambda file: np.array(rgb(file, exif)), files[start : start + CHUNK])
