"""What goes wrong with a machine in the middle of a run, told so that one knows what to do."""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from lpslim import ranks
from lpslim.errors import RunError, UserError
from lpslim.plan import Step
from lpslim.snapshots import Snapshots

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
BARRED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ELOOP)  # the last: a link that is not followed
GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)
LOCKLESS = (errno.ENOLCK, errno.ENOTSUP)
REMEDIES = (
    (FULL, "free some space"),
    (BARRED, "make the place writable, or name another (work_dir, results_dir)"),
    (GONE, "put back what is missing: data and work_dir must stay where they are during a run"),
    (LOCKLESS, "take a work_dir on a file system that can lock files (flock)"),
)
OUT_OF_MEMORY = "take a smaller batch_size, or a machine with more memory"
AGAIN = "the same command goes on from what was kept"


@contextmanager
def explained(steps: Iterable[Step]) -> Iterator[None]:
    """Turn what the machine does to the block into a message that says what of ``steps`` is kept.

    An interruption by the user passes, after the same message: it must end a sweep as well.

    Raises:
        RunError: a disk, a folder or the memory failed.
    """
    try:
        yield
    except KeyboardInterrupt:
        if ranks.main():
            print(f"\ninterrupted\n{_kept(steps)}\n{AGAIN}", file=sys.stderr)
        raise
    except Exception as problem:
        if (told := reason(problem)) is None:
            raise
        happened, remedy = told
        raise RunError(f"{happened}\n{_kept(steps)}\n{remedy}, then: {AGAIN}") from problem


def reason(problem: BaseException) -> tuple[str, str] | None:
    """Return what happened and what to do about it; None for a fault of the program's, or of the input."""
    if isinstance(problem, RunError | UserError):
        return None
    text = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
    if out_of_memory(problem):
        return f"out of memory ({text[:160]})", OUT_OF_MEMORY
    code, where = _system_error(problem)
    for codes, remedy in REMEDIES:
        if code in codes:
            return where, remedy
    return None


def out_of_memory(problem: BaseException) -> bool:
    """Whether an exception says that memory was lacking, on whatever device."""
    return isinstance(problem, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(
        problem
    )


def _system_error(problem: BaseException) -> tuple[int | None, str]:
    """Return the operating system's number and words for what lies behind an exception."""
    chain: BaseException | None = problem
    while chain:
        if isinstance(chain, OSError) and chain.errno:
            place = f": {chain.filename}" if chain.filename else ""
            return chain.errno, f"{chain.strerror}{place}"
        text = str(chain)  # of safetensors, and of a loader's worker, the message is all there is
        if found := re.search(r"\(os error (\d+)\)|\[Errno (\d+)\]", text):
            line = next(line for line in text.splitlines() if found[0] in line)
            return int(found[1] or found[2]), line.strip()
        chain = chain.__cause__ or chain.__context__
    return None, ""


def _kept(steps: Iterable[Step]) -> str:
    """Return which stages are finished, and of which there is a checkpoint."""
    found = []
    for step in steps:
        if step.done:
            found.append(f"{step.name} {step.key}")
        elif Snapshots(step.folder, None).exist:
            found.append(f"a checkpoint of {step.name} {step.key}")
    return f"kept: {', '.join(found) or 'nothing yet'}"
