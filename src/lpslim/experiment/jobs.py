"""What is known of a sweep's jobs, whichever processes and machines do them: files in one folder.

A job holds a lock as long as it lives and leaves a note when it has ended; with neither it was killed.
"""

from __future__ import annotations

import fcntl
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from lpslim.base import files

_held: dict[Path, TextIO] = {}


@dataclass(frozen=True)
class Job:
    """A job: its overrides, and its state: done, failed, lost, running, or waiting (not begun).

    problem: what a failed one said, on one line; code: the exit code that it gives; trace: its traceback;
    surprise: whether nobody foresaw it. stages: those that it found or computed, or with ``dry`` would, as
    dictionaries.
    """

    overrides: str
    state: str
    problem: str = ""
    code: int = 0
    trace: str = ""
    surprise: bool = False
    stages: list[dict[str, Any]] = field(default_factory=list)
    dry: bool = False


def begin(folder: Path, number: int, overrides: str) -> None:
    """Hold a job's lock until it ends or its process dies.

    A record lock, not ``flock``: processes forked for decoding images do not inherit it.
    """
    path = _lock(folder, number)
    file = open(path, "w")  # noqa: SIM115 (held beyond this function)
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    file.write(overrides)
    file.flush()
    _held[path] = file


def end(folder: Path, number: int, job: Job) -> None:
    """Note how a job ended, then drop its lock."""
    store.write_json(_note(folder, number), asdict(job))
    path = _lock(folder, number)
    if path in _held:
        path.unlink()
        _held.pop(path).close()


def read(folder: Path, planned: Sequence[str] = ()) -> list[Job]:
    """Return the jobs in order: those ``planned``, as overrides, and those that began beyond them."""
    begun = [int(path.stem) for path in folder.glob("[0-9]*.*")]
    count = max(len(planned), 1 + max(begun, default=-1))
    return [_read(folder, number, (*planned, *[""] * count)[number]) for number in range(count)]


def _read(folder: Path, number: int, overrides: str) -> Job:
    path = _lock(folder, number)
    begun = path.exists()
    alive = begun and _is_held(path)
    if _note(folder, number).exists():  # looked for last: a note may appear, and its lock vanish, meanwhile
        return Job(**store.read_json(_note(folder, number)))
    if not begun:
        return Job(overrides, "waiting")
    return Job(path.read_text(), "running" if alive else "lost")


def _is_held(path: Path) -> bool:
    """Whether another process holds the lock; a job of this process is over when this is asked."""
    try:
        with open(path, "r+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _lock(folder: Path, number: int) -> Path:
    return folder / f"{number}.lock"


def _note(folder: Path, number: int) -> Path:
    return folder / f"{number}.json"
