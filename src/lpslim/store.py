"""Stage folders and small files: written beside, renamed into place, never changed.

A stage folder exists only when it is complete. An advisory lock (``flock``) makes a
second process that wants the same stage wait; the kernel drops the lock of a
process that dies.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file ``path`` while the block runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)) as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a scratch folder that becomes ``path`` when the block ends well, or vanishes.

    Raises:
        FileExistsError: ``path`` exists already; nothing stored is ever overwritten.
    """
    if path.exists():
        raise FileExistsError(f"{path} exists and is never overwritten")
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield scratch
        os.chmod(scratch, 0o755)  # mkdtemp made it private
        os.rename(scratch, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` beside ``path`` and rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(scratch, 0o644)
        os.replace(scratch, path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON; NaN and infinity are refused (ValueError)."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read one JSON file."""
    return json.loads(path.read_text())


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Yield an empty file that takes the place of ``path`` when the block ends well, or vanishes.

    A link at ``path`` is replaced, never followed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name[:100]}-", dir=path.parent)
    os.close(handle)
    scratch = Path(name)
    try:
        yield scratch
        os.chmod(scratch, 0o644)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def make_folder(path: Path, root: Path) -> Path:
    """Make the folder ``path`` below ``root``, or find it, and return it.

    Raises:
        NotADirectoryError: it is not below, or a part of it below ``root`` is a link: what is
            written there would land elsewhere.
    """
    below = path.relative_to(root).parts if path.is_relative_to(root) else ("..",)
    parts = [root.joinpath(*below[: i + 1]) for i in range(len(below))]
    linked = [part for part in parts if part.is_symlink()]
    if ".." in below or linked:
        raise NotADirectoryError(
            f"{(linked or [path])[0]}: not a folder below {root}; a link is not followed"
        )
    path.mkdir(parents=True, exist_ok=True)
    return path


def refuse_links(folder: Path) -> None:
    """Refuse to write into a folder that holds links: an appended log would land elsewhere.

    Raises:
        NotADirectoryError: it holds a link.
    """
    if links := [entry for entry in folder.iterdir() if entry.is_symlink()]:
        raise NotADirectoryError(f"{links[0]}: is a link; nothing is written through it")
