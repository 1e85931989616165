"""Checkpoints inside a stage, so that a killed training goes on where it was.

A checkpoint is one file of tensors and numbers, ``<key>.<SHA-256>.checkpoint`` beside the stage's folder:
written beside, renamed into place, and read back only if its contents still have the hash in its name. It
is never shared, and vanishes when its stage is finished.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from lpslim.base.files import file_hash
from lpslim.training.loop import distributed

log = logging.getLogger(__name__)


class Snapshots:
    """The checkpoints of one stage.

    Args:
        stage: the folder that the finished stage will have.
        minutes: how often one is due; 0 for always, None for never.
    """

    def __init__(self, stage: Path, minutes: float | None) -> None:
        self.stage, self.minutes = stage, minutes
        self.last = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time for the next one."""
        return self.minutes is not None and time.monotonic() - self.last >= 60 * self.minutes

    @property
    def exist(self) -> bool:
        """Whether there is one."""
        return bool(self._files())

    def save(self, state: dict[str, Any]) -> None:
        """Keep ``state``: tensors, numbers, strings, in dictionaries, lists and tuples.

        Raises:
            OSError: it cannot be written.
        """
        self.stage.parent.mkdir(parents=True, exist_ok=True)
        # a folder, since torch refuses to write a file whose own name begins with a dot
        with TemporaryDirectory(prefix=f".{self.stage.name}-", dir=self.stage.parent) as scratch:
            file = Path(scratch) / "state"
            _write(state, file)
            kept = self.named(file)
            os.replace(file, kept)
        self.clear(but=kept)
        self.last = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """Return the last state that was kept, on the CPU; None if there is none, or none is intact.

        Several processes must call it together, and read the same.
        """
        if (file := ranks.decided(self._intact)) is None:
            return None
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        return state

    def _intact(self) -> Path | None:
        for file in sorted(self._files(), key=os.path.getmtime, reverse=True):
            if file == self.named(file):
                return file
            log.warning("%s: is damaged, and is not used", file)
        return None

    def clear(self, but: Path | None = None) -> None:
        """Remove all checkpoints of the stage, but one."""
        for file in self._files():
            if file != but:
                file.unlink()

    def named(self, file: Path) -> Path:
        """Return the name of a checkpoint with this file's contents."""
        return self.stage.with_name(f"{self.stage.name}.{file_hash(file)}.checkpoint")

    def _files(self) -> list[Path]:
        return list(self.stage.parent.glob(f"{self.stage.name}.*.checkpoint"))


def _write(state: dict[str, Any], path: Path) -> None:
    # by its path: an interruption that falls into a file object's write would be lost in torch's writer,
    # which in turn does not tell what the system said when the file failed
    try:
        torch.save(state, path)
    except RuntimeError as problem:
        free = shutil.disk_usage(path.parent).free // 10**6
        said = f"a checkpoint could not be written, with {free} MB free on its disk"
        raise OSError(errno.ENOSPC, said, str(path)) from problem
