"""Device, precision and processes of a run, which torchrun or ``accelerate launch`` starts, Accelerate joins.

A program that runs alone is process 0 of 1. Process 0 is the main one: it decides and writes.
"""

import atexit
import ctypes
import os
import platform
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, gather_object

from lpslim.base.errors import RunError, UserError
from lpslim.data.splits import Share
from lpslim.training.schedule import RuntimeConfig

CPU_INFO, BF16_FLAGS = Path("/proc/cpuinfo"), {"avx512_bf16", "amx_bf16"}
PATIENCE = InitProcessGroupKwargs(timeout=timedelta(days=365))  # others wait while the main one does a stage
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


def resolved(runtime: RuntimeConfig) -> RuntimeConfig:
    """Return ``runtime`` with device and precision decided; UserError if what it needs is not there."""
    cuda = runtime.device != "cpu" and torch.cuda.is_available()
    if runtime.device == "cuda" and not cuda:
        raise UserError("trainer.device=cuda: PyTorch sees no CUDA device; must be auto or cpu here")
    if runtime.cuda_graphs and not cuda:
        raise UserError("trainer.cuda_graphs=true: needs a CUDA device; must be false here")
    device, precision = "cuda" if cuda else "cpu", runtime.precision
    if precision == "auto":
        precision = "bf16" if computes_bf16(device) else "fp32"
    return replace(runtime, device=device, precision=precision)


def computes_bf16(device: str) -> bool:
    """Return whether a resolved device is known to compute in bf16; elsewhere PyTorch emulates it."""
    if device == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    return CPU_INFO.exists() and not BF16_FLAGS.isdisjoint(CPU_INFO.read_text().split())


def processor(device: str) -> str:
    """Return the name of the GPU, or of the CPU, that trains on a resolved device."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    name = re.search(r"^model name\s*: (.+)", CPU_INFO.read_text() if CPU_INFO.exists() else "", re.MULTILINE)
    return name[1] if name else platform.processor()


def make_accelerator(runtime: RuntimeConfig) -> Accelerator:
    """Return an Accelerator on the runtime's device; the first one joins the processes of a launched run.

    Accelerate keeps one precision and one device for the whole process: it is told no precision (the loop has
    an autocast of its own), and where the process runs alone, the device anew.
    """
    device, launched = resolved(runtime).device, int(os.environ.get("WORLD_SIZE", 1)) > 1
    joins, on_cpu = launched and not dist.is_initialized(), launched and device == "cpu"
    accelerator = Accelerator(cpu=on_cpu, mixed_precision="no", kwargs_handlers=[PATIENCE])
    if joins:
        atexit.register(dist.destroy_process_group)
    if not launched:
        accelerator.state.device = torch.device(device)
    if runtime.threads:
        torch.set_num_threads(runtime.threads)
    if device == "cpu":
        keep_freed_memory()
    return accelerator


def keep_freed_memory() -> None:
    """Let glibc keep freed memory, whose pages a CPU step would pay for anew: 13 to 23 % of its time."""
    if any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ):
        return  # the user's own settings
    with suppress(AttributeError, OSError, TypeError):  # macOS, musl, Windows
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: bytes of free memory that stay
        mallopt(-3, 2**30)  # M_MMAP_THRESHOLD: bytes of an allocation that cannot come from them
