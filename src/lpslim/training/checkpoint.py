"""Checkpoint inside a stage: one file beside the stage's folder, which a killed training goes on from."""

import hashlib
import logging
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from lpslim.base.files import atomic_file, clear_scratch

SIZE = hashlib.sha256().digest_size  # the file begins with the hash of the rest
log = logging.getLogger(__name__)


class Checkpoint:
    """Last state of the training that makes ``stage_folder``, saved every so many minutes (None: never)."""

    def __init__(self, stage_folder: Path, minutes: float | None) -> None:
        self.file = stage_folder.with_name(f"{stage_folder.name}.checkpoint")
        self.minutes, self.saved_at = minutes, time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time to save."""
        return self.minutes is not None and time.monotonic() - self.saved_at >= 60 * self.minutes

    def save(self, state: dict[str, Any]) -> None:
        """Replace the file by one with ``state``: tensors, numbers, strings, in dictionaries and lists."""
        buffer = BytesIO()
        torch.save(state, buffer)
        with atomic_file(self.file) as scratch, open(scratch, "wb") as stream:
            stream.write(hashlib.sha256(buffer.getbuffer()).digest())
            stream.write(buffer.getbuffer())
        self.saved_at = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """Return the saved state, on the CPU; None if there is none, or it is damaged."""
        if not self.file.exists():
            return None
        content = memoryview(self.file.read_bytes())
        if hashlib.sha256(content[SIZE:]).digest() != content[:SIZE]:
            log.warning("%s: is damaged, and is not used", self.file)
            return None
        return torch.load(BytesIO(content[SIZE:]), map_location="cpu", weights_only=True)

    def clear(self) -> None:
        """Remove the file, and what was left half-written."""
        self.file.unlink(missing_ok=True)
        clear_scratch(self.file)
