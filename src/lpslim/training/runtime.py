"""Runtime of a training: its device, precision, compiler and memory allocator."""

from __future__ import annotations

import atexit
import ctypes
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from lpslim.base.errors import RunError, UserError
from lpslim.data.splits import Data
from lpslim.training import distributed
from lpslim.training.schedule import RuntimeConfig, TrainConfig

CPU_INFO, BF16_FLAGS = Path("/proc/cpuinfo"), {"avx512_bf16", "amx_bf16"}
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def resolved(runtime: RuntimeConfig) -> RuntimeConfig:
    """Return ``runtime`` with device and precision decided; UserError if the device is not there."""
    cuda = runtime.device != "cpu" and torch.cuda.is_available()
    if runtime.device == "cuda" and not cuda:
        raise UserError("trainer.device=cuda: PyTorch sees no CUDA device; must be auto or cpu here")
    precision = runtime.precision
    if precision == "auto":
        flags = CPU_INFO.read_text().split() if CPU_INFO.exists() else []
        native = torch.cuda.get_device_capability() >= (8, 0) if cuda else not BF16_FLAGS.isdisjoint(flags)
        precision = "bf16" if native else "fp32"
    return replace(runtime, device="cuda" if cuda else "cpu", precision=precision)


def make_accelerator(runtime: RuntimeConfig) -> Accelerator:
    """Return an Accelerator on the runtime's device; the first one joins the processes of a launched run.

    Accelerate keeps one precision and one device for the whole process: it is told no precision (the loop has
    an autocast of its own), and where the process runs alone, the device anew.
    """
    device, launched = resolved(runtime).device, distributed.launched()
    joins, on_cpu = launched and not dist.is_initialized(), launched and device == "cpu"
    patience = [InitProcessGroupKwargs(timeout=distributed.PATIENCE)]
    accelerator = Accelerator(cpu=on_cpu, mixed_precision="no", kwargs_handlers=patience)
    if joins:
        atexit.register(dist.destroy_process_group)
    if not launched:
        accelerator.state.device = torch.device(device)
    if runtime.threads:
        torch.set_num_threads(runtime.threads)
    if device == "cpu":
        keep_freed_memory()
    return accelerator


@contextmanager
def compiler_errors() -> Iterator[None]:
    """Turn an exception of torch.compile, in the block, into a RunError that names the setting to change."""
    try:
        yield
    except Exception as problem:
        if not type(problem).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = " ".join(str(problem).splitlines()[:2])[:200]
        raise RunError(f"trainer.compile=true: {reason}; trainer.compile=false avoids it") from problem


def check_batches(configs: Mapping[str, TrainConfig], data: Data) -> None:
    """Raise a UserError for a batch that the processes cannot share equally; ``configs`` by their keys."""
    for key, config in configs.items():
        size, world = min(config.batch_size, len(data.train)), distributed.count()
        if size % world:
            raise UserError(f"{key}.batch_size={size}: must be a multiple of the {world} processes")


def keep_freed_memory() -> None:
    """Let glibc keep freed memory, whose pages a CPU step would pay for anew: 13 to 23 % of its time."""
    if any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ):
        return  # the user's own settings
    with suppress(AttributeError, OSError, TypeError):  # macOS, musl, Windows
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)  # bytes of free memory that stay
        mallopt(M_MMAP_THRESHOLD, 2**30)  # bytes of an allocation that cannot come from them
