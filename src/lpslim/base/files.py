"""Atomic files and folders, locks, hashes and seeds, manifests.

Whatever is written appears whole: it is made beside its place and renamed into it. A sealed folder carries a
manifest with the hash of every file in it.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lpslim.base.errors import UserError

MANIFEST = "stage.json"
log = logging.getLogger(__name__)


def canonical(value: Any) -> str:
    """Return the one JSON text of ``value``: sorted keys, no spaces; 1 and 1.0 differ.

    ValueError for a NaN or an infinity, TypeError for what is not made of JSON types.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """Return the hexadecimal SHA-256 of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def derive_seed(seed: int, *purpose: str | int) -> int:
    """Return an independent 63-bit seed for one purpose, such as ``("finetune", "order", 3)``."""
    return int(digest([seed, *purpose])[:16], 16) >> 1


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file ``path`` while the block runs, after waiting for another holder if there is one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("%s: waiting for another process that holds it", path.stem)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a scratch folder that becomes ``path`` when the block ends well; FileExistsError if it exists."""
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


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield an empty scratch file that replaces ``path`` when the block ends well, and is removed otherwise.

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


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically, and flush it to the disk."""
    with atomic_file(path) as scratch, open(scratch, "wb") as stream:
        stream.write(text.encode())
        stream.flush()
        os.fsync(stream.fileno())


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically; NaN and infinity are refused (ValueError)."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read one JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def clear_scratch(path: Path) -> None:
    """Remove what processes that died left half-written beside ``path``; its lock must be held."""
    for left in path.parent.glob(f".{path.name}-*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def write_manifest(folder: Path, info: dict[str, Any]) -> None:
    """Seal a folder: write ``info``, the SHA-256 of every file, and the digest of both, to its manifest."""
    content = {**info, "files": {name: file_hash(folder / name) for name in _files(folder)}}
    write_json(folder / MANIFEST, {**content, "digest": digest(content)})


def verify_manifest(folder: Path) -> str:
    """Return how a sealed folder differs from what was written, as a sentence; empty if it is intact."""
    try:
        content = read_json(folder / MANIFEST)
        stated, expected = content.pop("digest"), content["files"]
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as problem:
        return f"{MANIFEST}: cannot be read ({problem})"
    if stated != digest(content):
        return f"{MANIFEST}: is not what was written"
    names = _files(folder)
    if odd := sorted(set(names) ^ set(expected)):
        return f"{odd[0]}: {'is not of this stage' if odd[0] in names else 'is missing'}"
    changed = (name for name in names if file_hash(folder / name) != expected[name])
    return next((f"{name}: is not the file that was written" for name in changed), "")


def set_aside(folder: Path) -> Path:
    """Rename a damaged folder out of the way, for a person to look at; return its new path."""
    aside = folder.with_name(f"{folder.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
    return folder.rename(aside)


def _files(folder: Path) -> list[str]:
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(str(path.relative_to(folder)) for path in found if path != folder / MANIFEST)


def check_writable(folder: Path, key: str) -> None:
    """Make the folder that the configuration key ``key`` names; UserError if it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(prefix=".writable-", dir=folder) as probe:
            probe.write(b"probe")
    except OSError as problem:
        raise UserError(f"{key}={folder}: cannot be written to ({problem.strerror})") from problem


def called(name: str) -> str:
    """Return what is written of an encoder's name: of a folder its last part, any other name as it is."""
    return Path(name).name if name.startswith(("/", ".", "~")) or Path(name).is_dir() else name
