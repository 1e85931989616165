"""Runtime of a training: its device, precision and memory allocator."""

import atexit
import ctypes
import os
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from lpslim.base.errors import UserError
from lpslim.training.schedule import RuntimeConfig

CPU_INFO, BF16_FLAGS = Path("/proc/cpuinfo"), {"avx512_bf16", "amx_bf16"}
PATIENCE = InitProcessGroupKwargs(timeout=timedelta(days=365))  # others wait while the main one does a stage


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
