"""Runs in processes of their own, which can be killed at any moment, or at any write."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lpslim.experiment.runner import execute
from tests.composing import configured

# a server that has imported everything, and has used nothing, forks each process: seconds saved a time;
# there is one in a process, so one list for all tests
PROCESSES = multiprocessing.get_context("forkserver")
USED = ("tests.training.toys", "lpslim.models.families.vgg", "lpslim.data.datasets.digits")
PROCESSES.set_forkserver_preload([__name__, *USED])
TINY = ("model=vgg_small", "debug=tiny", "trainer.threads=1", "trainer.precision=fp32")
WRITES = ("replace", "rename", "unlink", "fsync")


def places(folder: Path) -> tuple[str, str]:
    return f"work_dir={folder}/outputs", f"results_dir={folder}/results"


def begin(*words: str, at_write: int | None = None, writes: Path | None = None) -> Any:
    """Start the tiny run with a checkpoint after every step.

    at_write: it kills itself around that write, see :func:`die_at`. writes: a file for how many there were.
    """
    process = PROCESSES.Process(target=_live, args=(words, at_write, writes))
    process.start()
    return process


def _live(words: tuple[str, ...], at_write: int | None, writes: Path | None) -> None:
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
    moments = die_at(at_write)
    execute(configured(*TINY, "trainer.checkpoint_minutes=0", *words), None)
    if writes:
        writes.write_text(str(moments()))


def die_at(moment: int | None) -> Callable[[], int]:
    """Let this process kill itself at that moment; each write has one just before and one just after.

    Returns a function that tells how many there were.
    """
    passed = 0

    def tick() -> None:
        nonlocal passed
        if passed == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        passed += 1

    def fatal(write: Callable[..., Any]) -> Callable[..., Any]:
        def around(*arguments: Any, **named: Any) -> Any:
            tick()
            result = write(*arguments, **named)
            tick()
            return result

        return around

    for name in WRITES:
        setattr(os, name, fatal(getattr(os, name)))
    return lambda: passed


def ended(process: Any, within: float = 120) -> int:
    """Wait for a process; return its exit code, negative for a signal."""
    process.join(within)
    assert process.exitcode is not None, "the run hangs"
    return int(process.exitcode)


def facts(folder: Path) -> list[dict[str, Any]]:
    """Return what the records below a folder say, but for wall time and machine."""
    content = [json.loads(path.read_text()) for path in sorted((folder / "results").rglob("*.json"))]
    return [{key: record[key] for key in record.keys() - {"seconds", "environment"}} for record in content]


def finished(folder: Path) -> dict[str, int]:
    """Return the finished stages and what tells each from one that was computed again."""
    manifests = (folder / "outputs" / "stages").glob("*/[!.]*/stage.json")
    return {str(path.parent): path.stat().st_ino for path in manifests}
