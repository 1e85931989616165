"""Stage folders and small files: written beside, renamed into place, never changed.

A stage folder exists only when it is complete, and says in its manifest what it holds, so that a later
reader can tell whether it still does. An advisory lock (``flock``) makes a second process that wants the
same stage wait; the kernel drops the lock of a process that dies.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lpslim.errors import UserError
from lpslim.keys import digest

MANIFEST = "stage.json"
log = logging.getLogger(__name__)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file ``path`` while the block runs; wait for another holder, and say for whom."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    with os.fdopen(handle, "r+") as holder:
        try:
            fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("%s: waiting for %s", path.stem, holder.read().strip() or "another process")
            fcntl.flock(holder, fcntl.LOCK_EX)
        holder.seek(0)
        holder.truncate()
        holder.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        holder.flush()
        try:
            yield
        finally:  # closing would not do: workers forked meanwhile hold it too, and outlive an error
            fcntl.flock(holder, fcntl.LOCK_UN)


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


def clear_scratch(path: Path) -> None:
    """Remove what processes that died left of ``path`` half-written; its lock must be held."""
    for left in path.parent.glob(f".{path.name}-*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def seal(folder: Path, info: dict[str, Any]) -> None:
    """Write the manifest: ``info``, every file's SHA-256, and a digest of the manifest itself."""
    content = {**info, "files": {name: file_hash(folder / name) for name in _files(folder)}}
    write_json(folder / MANIFEST, {**content, "digest": digest(content)})


def damage(folder: Path) -> str:
    """Return what tells a sealed folder from what was written, in words; nothing if it is intact.

    A folder older than manifests of files is taken as it is.
    """
    try:
        content = read_json(folder / MANIFEST)
        stated = content.pop("digest", None)
    except (OSError, ValueError, AttributeError) as problem:
        return f"{MANIFEST}: cannot be read ({problem})"
    if "files" not in content and stated is None:
        return ""
    if stated != digest(content):
        return f"{MANIFEST}: is not what was written"
    names = _files(folder)
    if odd := sorted(set(names) ^ set(content["files"])):
        return f"{odd[0]}: {'is not of this stage' if odd[0] in names else 'is missing'}"
    changed = (name for name in names if file_hash(folder / name) != content["files"][name])
    return next((f"{name}: is not the file that was written" for name in changed), "")


def set_aside(folder: Path) -> Path:
    """Rename a folder out of the way, for a person to look at; return where it is now."""
    aside = folder.with_name(f"{folder.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
    os.rename(folder, aside)
    return aside


def _files(folder: Path) -> list[str]:
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(str(path.relative_to(folder)) for path in found if path != folder / MANIFEST)


def file_hash(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_writable(folder: Path, key: str) -> None:
    """Make the folder that the value of ``key`` names, and see whether a file can be written there.

    Raises:
        UserError: it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(prefix=".writable-", dir=folder) as probe:
            probe.write(b"probe")
    except OSError as problem:
        raise UserError(f"{key}={folder}: cannot be written to ({problem.strerror})") from problem


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 beside ``path`` and rename it into place."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` beside ``path`` and rename it into place."""
    with beside(path) as scratch, open(scratch, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


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


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON; NaN and infinity are refused (ValueError)."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read one JSON file."""
    return json.loads(path.read_text())


def make_folder(path: Path, root: Path) -> Path:
    """Make the folder ``path`` below ``root``, or find it, and return it.

    Raises:
        UserError: it is not below, or a part of it below ``root`` is a link: what is written there
            would land elsewhere.
    """
    below = path.relative_to(root).parts if path.is_relative_to(root) else ("..",)
    parts = [root.joinpath(*below[: i + 1]) for i in range(len(below))]
    linked = [part for part in parts if part.is_symlink()]
    if ".." in below or linked:
        raise UserError(f"{(linked or [path])[0]}: not a folder below {root}; a link is not followed")
    path.mkdir(parents=True, exist_ok=True)
    return path


def refuse_links(folder: Path) -> None:
    """Refuse to write into a folder that holds links: an appended log would land elsewhere.

    Raises:
        UserError: it holds a link.
    """
    if links := [entry for entry in folder.iterdir() if entry.is_symlink()]:
        raise UserError(f"{links[0]}: is a link; nothing is written through it")
