"""Processes of one run, started by torchrun or ``accelerate launch`` and joined by Accelerate.

A program that runs alone is process 0 of 1. Process 0 is the main one: it decides and writes.
"""

from __future__ import annotations

import atexit
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import broadcast, broadcast_object_list, gather_object, reduce
from torch import Tensor, nn

from lpslim.base.errors import RunError, UserError
from lpslim.data.splits import Share

PATIENCE = timedelta(days=365)  # the others wait while the main process does a stage, or waits for a lock
T = TypeVar("T")


def launched() -> bool:
    """Return whether this is one of several processes of one run."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def share() -> Share:
    """Return this process's share of batches and splits; the whole before Accelerate has joined them."""
    joined = dist.is_available() and dist.is_initialized()
    return Share(dist.get_rank(), dist.get_world_size()) if joined else Share()


def count() -> int:
    """Return the number of joined processes."""
    return share().world


def is_main() -> bool:
    """Return whether this is the main process."""
    return share().rank == 0


def gather(values: list[T]) -> list[T]:
    """Return the values of all processes, in the processes' order; tensors must be on the CPU."""
    return gather_object(values) if count() > 1 else values


def mean(tensor: Tensor) -> Tensor:
    """Return the mean over the processes: the same bits in each, without waiting for a GPU."""
    return reduce(tensor) if count() > 1 else tensor


def same_buffers(model: nn.Module) -> None:
    """Give every process the main one's buffers, such as the statistics of batch-norm."""
    if count() > 1:
        broadcast(list(model.buffers()))


def broadcast_from_main(action: Callable[[], T]) -> T:
    """Return, in every process, the result of ``action`` in the main one, which alone runs it.

    Where it raises, so do the others: its UserError, or a RunError in place of any other exception.
    """
    if count() == 1:
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
    """Return the result of ``action`` here; the main process runs it first, the others find what it cached.

    Where one of them raises a UserError, all do.
    """
    if count() == 1:
        return action()
    result, faults = None, []
    with PartialState().main_process_first():
        try:
            result = action()
        except UserError as problem:
            faults.append(str(problem))
    if faults := gather(faults):
        raise UserError(faults[0])
    return result  # type: ignore[return-value]


@contextmanager
def fail_fast(but: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """End one of several processes that fails in the block: its launcher then ends those that wait for it.

    but: exceptions that all processes raise together, which pass.
    """
    try:
        yield
    except BaseException as problem:
        if count() == 1 or isinstance(problem, but):
            raise
        atexit.unregister(dist.destroy_process_group)  # it would wait for the others
        if not isinstance(problem, Exception):
            raise
        told = isinstance(problem, RunError | UserError)
        text = str(problem) if told else "".join(traceback.format_exception(problem))
        raise SystemExit(f"error: process {share().rank}: {text}") from problem
