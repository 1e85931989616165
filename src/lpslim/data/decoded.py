"""Image folders decoded once: the pixels of all images, at their full sizes, in one file mapped into memory.

They have the bits that decoding gives, without its time. A store is a folder that appears whole: ``pixels``,
one image (H, W, 3) uint8 after the other, and ``index.safetensors``: ``sizes`` (N, 2) and ``checks`` (N,).
"""

from __future__ import annotations

import logging
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from traceback import clear_frames
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from lpslim.base import files
from lpslim.base.errors import UserError
from lpslim.data.folders import listing_digest, opened, rgb

PIXELS, INDEX = "pixels", "index.safetensors"
MEASURED = 500  # images whose headers say how large the store will be
GB = 10**9
log = logging.getLogger(__name__)


class Pixels:
    """Some images of a store, by number; whichever process reads first maps the file for itself.

    sizes: (n, 2), height and width. starts: (n,), where they begin. checks: (n,), their CRC-32.
    """

    def __init__(self, file: Path, sizes: Tensor, starts: Tensor, checks: Tensor) -> None:
        self.file, self.sizes, self.starts, self.checks = file, sizes, starts, checks
        self.damaged = False

    @cached_property
    def _mapped(self) -> np.memmap[Any, np.dtype[np.uint8]]:
        return np.memmap(self.file, np.uint8, "r")

    def image(self, number: int) -> Image.Image | None:
        """Return an image; None, after a warning, if its pixels are not those that were written."""
        (height, width), start = self.sizes[number].tolist(), int(self.starts[number])
        taken = self._mapped[start : start + 3 * height * width]
        if _check(taken, width) == int(self.checks[number]):
            return Image.fromarray(taken.reshape(height, width, 3))
        if not self.damaged:
            self.damaged = True
            log.warning("%s: is damaged; what is lost is decoded anew until its folder is deleted", self.file)
        return None


@dataclass(frozen=True)
class PixelStore:
    """Where the decoded images of a folder are kept, if they fit.

    root: what the ``files`` lie below. cache: of all stores. gigabytes: the most that one may take.
    workers: processes that decode.
    """

    root: Path
    files: Sequence[Path]
    cache: Path
    gigabytes: float
    workers: int

    def pixels(self, rows: Tensor) -> Pixels | None:
        """Return the images of ``files`` with these numbers, all decoded first if they are not yet.

        None where they do not fit and must be streamed, which is logged once. Of several processes one
        decodes, and the others wait. No random number is drawn.

        Raises:
            UserError: a file is no image.
            OSError: the disk is full, or an image is gone.
        """
        folder = self._folder
        if folder is None:
            return None
        if (index := self._index(folder)) is None:
            with store.locked(folder.with_name(f"{folder.name}.lock")):
                store.clear_scratch(folder)
                if (index := self._index(folder)) is None:  # nobody has made it meanwhile
                    if folder.exists():
                        log.warning("%s: is damaged, and made again", folder)
                        shutil.rmtree(folder)
                    index = self._make(folder)
        sizes, checks = index
        ends = (3 * sizes.prod(1)).cumsum(0)
        starts = ends - 3 * sizes.prod(1)
        return Pixels(folder / PIXELS, sizes[rows], starts[rows], checks[rows])

    @cached_property
    def _folder(self) -> Path | None:
        """The store's folder, made or to be made; None if it does not fit."""
        if not self.gigabytes:
            return None
        measured = self.files[:: -(-len(self.files) // MEASURED)]
        needed = sum(map(_size, measured)) / len(measured) * len(self.files) / GB
        said = f"{self.root}: every epoch decodes its images anew; decoded, all would take {needed:.3g} GB"
        if needed > self.gigabytes:
            log.info("%s, and dataset.store_gb=%g", said, self.gigabytes)
            return None
        # other versions of Pillow may decode to other bits
        name = f"{listing_digest(self.root, self.files)[:32]}-pillow-{PIL.__version__}"
        folder = self.cache / name
        self.cache.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.cache).free / GB
        if not folder.exists() and free < 2 * needed:
            log.info("%s, and %s has %.1f GB free, not twice that", said, self.cache, free)
            return None
        return folder

    def _index(self, folder: Path) -> tuple[Tensor, Tensor] | None:
        """Return the sizes and checks of a store; None if there is none, or none that can be right."""
        try:
            index = load_file(folder / INDEX)
            sizes, checks = index["sizes"], index["checks"]
            written = (folder / PIXELS).stat().st_size
        except (OSError, SafetensorError, KeyError):
            return None
        count = len(self.files)
        if [(each.dtype, each.shape) for each in (sizes, checks)] != [
            (torch.long, (count, 2)), (torch.long, (count,)),
        ]:  # fmt: skip
            return None
        return (sizes, checks) if sizes.min() > 0 and 3 * sizes.prod(1).sum() == written else None

    def _make(self, folder: Path) -> tuple[Tensor, Tensor]:
        sizes, checks = [], []
        # a generator of its own, or the loader would draw from everybody's
        loader = DataLoader(
            _Arrays(self.files), batch_size=None, num_workers=self.workers, generator=torch.Generator()
        )
        bar = tqdm(results(loader), desc=f"decode {self.root.name}", total=len(self.files), disable=None)
        with store.new_folder(folder) as scratch:
            with _written(scratch / PIXELS) as file:
                for image in bar:
                    sizes.append(image.shape[:2])
                    checks.append(_check(image.numpy(), image.shape[1]))
                    file.write(image.numpy())
            index = {"sizes": torch.tensor(sizes), "checks": torch.tensor(checks)}
            store.write_bytes(scratch / INDEX, save(index))
        log.info("decoded %d images of %s into %s", len(sizes), self.root, folder)
        return index["sizes"], index["checks"]


class _Arrays(Dataset[Tensor]):
    """Decodes one image at a time, (H, W, 3) uint8, in the loader's worker processes."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(np.array(rgb(self.files[index])))


def results(loader: DataLoader[Any]) -> Iterator[Any]:
    """Yield what a loader does; a UserError of a worker comes without the worker's traceback.

    Raises:
        UserError: a worker, or the loader itself, has raised it.
    """
    try:
        yield from loader
    except Exception as problem:
        clear_frames(problem.__traceback__)  # they hold the workers, who would live on with the traceback
        if not isinstance(problem, UserError):
            raise
        raise UserError(
            str(problem).strip().splitlines()[-1].partition("UserError: ")[2] or problem
        ) from None


def _size(file: Path) -> int:
    with opened(file) as image:
        return 3 * image.width * image.height


def _check(pixels: np.ndarray[Any, Any], width: int) -> int:
    return zlib.crc32(pixels.data, width)  # the same pixels in rows of another width are another image


@contextmanager
def _written(path: Path) -> Iterator[Any]:
    """Open a new file; where writing it fails, say which it is, and how to do without."""
    try:
        with open(path, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except OSError as problem:
        if problem.errno is None or problem.filename:  # not of this file
            raise
        said = f"{problem.strerror} (dataset.store_gb=0 does without this file)"
        raise OSError(problem.errno, said, str(path)) from problem
