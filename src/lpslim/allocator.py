"""Freed memory that stays with the process: on a CPU a training step takes the same again and again.

By default glibc gives the memory of large tensors back to the system as soon as they are freed, and the
next step pays for every page anew, a tenth of its time and more (docs/speed.md). No bit of a training depends
on it.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
KEPT, FROM_HEAP = 2**31 - 1, 2**30  # bytes: free memory that stays; allocations below come from what was kept


@cache
def keep_freed_memory() -> bool:
    """Ask malloc to keep what is freed; return whether it will.

    Nothing is changed where malloc is not glibc's, or where the environment sets it up (GLIBC_TUNABLES,
    MALLOC_...).
    """
    if any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, musl, Windows
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, KEPT) and mallopt(M_MMAP_THRESHOLD, FROM_HEAP))
