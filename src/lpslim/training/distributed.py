"""Several processes that train one network: who takes what, and what all of them agree on.

They are started by torchrun or ``accelerate launch``, and find each other through Accelerate. A program that
runs alone is process 0 of 1: everything here then does nothing. Process 0, the main one, decides and writes.
"""

from __future__ import annotations

import atexit
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lpslim.base.errors import RunError, UserError
from lpslim.data.splits import Share

PATIENCE = timedelta(days=365)  # the others wait while the main one does a stage, or waits for another run
T = TypeVar("T")
_alone = False  # see alone()


class ElsewhereError(Exception):
    """The main process failed, and says so itself."""


def launched() -> bool:
    """Whether this is one of several processes of one run."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def share() -> Share:
    """Return which of how many processes this is; 0 of 1 before Accelerate has joined them."""
    if _alone or not (dist.is_available() and dist.is_initialized()):
        return Share()
    return Share(dist.get_rank(), dist.get_world_size())


@contextmanager
def alone() -> Iterator[None]:
    """Let this process be 0 of 1 in the block: what it does there, the others have no part in."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def main() -> bool:
    """Whether this is the process that decides, writes and speaks."""
    return share().rank == 0


def counted() -> dict[str, int]:
    """Return how many processes there are as ``processes``; nothing if it is one."""
    world = share().world
    return {"processes": world} if world > 1 else {}


@cache
def _messages() -> Any:
    """Return the group that messages go over, on the CPU whatever the gradients are on."""
    atexit.register(dist.destroy_process_group)
    return dist.new_group(backend="gloo", timeout=PATIENCE)


def gathered(values: list[T]) -> list[T]:
    """Return what all processes have, in their order; tensors must be on the CPU."""
    if (world := share().world) == 1:
        return values
    parts: list[Any] = [None] * world
    dist.all_gather_object(parts, values, group=_messages())
    return [value for part in parts for value in part]


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Return the tensors (n, ...) of all processes as one; with several processes, on the CPU."""
    if share().world == 1:
        return torch.cat(list(parts))
    return torch.cat(gathered([part.cpu() for part in parts]))


def mean(value: Tensor) -> Tensor:
    """Return the mean over the processes, the same bits in each; does not wait for an accelerator."""
    if (world := share().world) == 1:
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / world


def same_buffers(model: nn.Module) -> None:
    """Give every process the buffers of the main one, such as what batch-norm has seen."""
    if share().world > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def decided(action: Callable[[], T]) -> T:
    """Return what ``action`` gives in the main process, which alone does it, to every process.

    Raises:
        ElsewhereError: in the others, where the main one has raised anything but a UserError.
        UserError: in all of them.
    """
    if share().world == 1:
        return action()
    problem: Exception | None = None
    outcome: list[Any] = [None, None]  # the value; whose fault it is, and in what words
    if main():
        try:
            outcome[0] = action()
        except Exception as raised:
            problem = raised
            outcome[1] = UserError if isinstance(raised, UserError) else ElsewhereError, str(raised)
    dist.broadcast_object_list(outcome, src=0, group=_messages())
    if problem:
        raise problem
    value, fault = outcome
    if fault:
        kind, words = fault
        raise kind(words)
    return value


def in_turn(action: Callable[[], T]) -> T:
    """Return what ``action`` gives here: the main process does it first, the others find what it has cached.

    Raises:
        UserError: one of them has raised it; then all do.
    """
    if share().world == 1:
        return action()
    result, faults = None, []
    for mine in (main(), not main()):
        if mine:
            try:
                result = action()
            except UserError as problem:
                faults.append(str(problem))
        if faults := gathered(faults):
            raise UserError(faults[0])
    return result  # type: ignore[return-value]


@contextmanager
def one_fate(but: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Of several processes, end one that fails in the block at once: its launcher then ends the others.

    They would wait for it for ever; and the next job of a sweep would find them in the midst of this one.
    ``but``: what all processes are known to raise together, which passes.

    Raises:
        SystemExit: with a message for the error stream, or where the main process gives it, without.
    """
    try:
        yield
    except BaseException as problem:
        if share().world == 1 or isinstance(problem, but):
            raise
        atexit.unregister(dist.destroy_process_group)  # it would wait for the others
        if not isinstance(problem, Exception):
            raise
        raise SystemExit(_last_words(problem)) from problem


def _last_words(problem: Exception) -> str | int:
    who = f"error: process {share().rank}: "
    if isinstance(problem, ElsewhereError):
        return 1
    if isinstance(problem, RunError | UserError):
        return who + str(problem)
    if isinstance(problem, dist.DistError) or "gloo" in str(problem):
        return who + f"lost the others ({str(problem).splitlines()[0][:160]})"
    return who + "".join(traceback.format_exception(problem))
