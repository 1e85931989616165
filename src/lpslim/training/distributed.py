"""Processes of one run, started by torchrun or ``accelerate launch`` and joined by Accelerate.

A program that runs alone is process 0 of 1. Process 0 is the main one: it decides and writes.
"""

import atexit
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from lpslim.base.errors import RunError, UserError
from lpslim.data.splits import Share

T = TypeVar("T")


def share() -> Share:
    """Return this process's share of batches and splits; the whole before Accelerate has joined them."""
    joined = dist.is_available() and dist.is_initialized()
    return Share(dist.get_rank(), dist.get_world_size()) if joined else Share()


def is_main() -> bool:
    """Return whether this is the main process."""
    return share().rank == 0


def broadcast_from_main(action: Callable[[], T]) -> T:
    """Return, in every process, the result of ``action`` in the main one, which alone runs it.

    Where it raises, so do the others: its UserError, or a RunError in place of any other exception.
    """
    if share().world == 1:
        return action()
    failure: Exception | None = None
    outcome: list[Any] = [None, None]
    if is_main():
        try:
            outcome[0] = action()
        except Exception as problem:
            failure = problem
            outcome[1] = problem if isinstance(problem, UserError) else RunError("the main process failed")
    result, error = broadcast_object_list(outcome)
    if failure or error:
        raise failure or error
    return result


def main_process_first(action: Callable[[], T]) -> T:
    """Return the result of ``action`` here, after the main process's; a UserError of one is raised by all."""
    if share().world == 1:
        return action()
    result, faults = None, []
    with PartialState().main_process_first():
        try:
            result = action()
        except UserError as problem:
            faults.append(str(problem))
    if faults := gather_object(faults):
        raise UserError(faults[0])
    return result  # type: ignore[return-value]


@contextmanager
def fail_fast(but: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """End one of several processes that fails in the block, so that its launcher ends those that wait for it.

    but: exceptions that all processes raise together, which pass.
    """
    try:
        yield
    except BaseException as problem:
        if share().world == 1 or isinstance(problem, but):
            raise
        atexit.unregister(dist.destroy_process_group)  # it would wait for the others
        if not isinstance(problem, Exception):
            raise
        text = problem if isinstance(problem, RunError | UserError) else traceback.format_exc()
        raise SystemExit(f"error: process {share().rank}: {text}") from problem
