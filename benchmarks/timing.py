"""Shared parts of the benchmarks: alternating calls, ratios with their spread, live memory, the machine."""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

RESULTS = Path(__file__).parent / "results"
Work = Callable[[], object]


@dataclass(frozen=True)
class Spread:
    """Median, quartiles and number of rounds of one figure."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Summarise one value per round."""
        rounds = list(values)
        low, _, high = quantiles(rounds, method="inclusive") if len(rounds) > 1 else rounds * 3
        return cls(median(rounds), low, high, len(rounds))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


def seconds(work: Work) -> float:
    """Return the wall time of one call, an accelerator's work included."""
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def in_turn(works: Mapping[str, Work], rounds: int, warm: int = 1) -> dict[str, list[float]]:
    """Return the seconds of every work per round; a round calls them all, another one first each time."""
    names = list(works)
    for name in names * warm:
        works[name]()
    times: dict[str, list[float]] = {name: [] for name in names}
    for done in range(rounds):
        start = done % len(names)
        for name in names[start:] + names[:start]:
            times[name].append(seconds(works[name]))
    return times


def ratio(times: Mapping[str, list[float]], name: str, over: str) -> Spread:
    """Return the time of ``name`` over the time of ``over``, round by round."""
    return Spread.of(a / b for a, b in zip(times[name], times[over], strict=True))


class _Live(TorchDispatchMode):
    """Counter of the bytes of all storages that operations made and that are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        self.storages = {key: pair for key, pair in self.storages.items() if not pair[0].expired()}
        for t in tree_leaves(out):
            if isinstance(t, Tensor) and (key := t.untyped_storage()._cdata) not in inputs:
                self.storages[key] = StorageWeakRef(t.untyped_storage()), t.untyped_storage().nbytes()
        self.peak = max(self.peak, sum(size for _, size in self.storages.values()))
        return out


def peak_bytes(work: Work) -> int:
    """Return the most bytes of new tensors that a call had alive at once.

    Tensors, not pages: what the allocator keeps, and buffers inside an operation, are not counted.
    """
    with _Live() as live:
        work()
    return live.peak


def nbytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of the tensors' storages, shared ones counted once."""
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


def machine() -> dict[str, Any]:
    """Return the processor, accelerator, threads, versions and load that a figure depends on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load_average": os.getloadavg()[0],
    }


def parser(description: str | None, name: str = "") -> argparse.ArgumentParser:
    """Return a command line with --quick, --threads and --json: results/<name>.json, or no file."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    made.add_argument("--quick", action="store_true", help="fewer rounds: less than two minutes")
    made.add_argument("--threads", type=int, default=torch.get_num_threads(), metavar="N")
    made.add_argument("--json", type=Path, default=RESULTS / f"{name}.json" if name else None, metavar="FILE")
    return made


def begin(options: argparse.Namespace) -> dict[str, Any]:
    """Set threads and seed, print the machine, and return it."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    host = machine()
    device = host["accelerator"] or host["processor"]
    print(f"{device}, {host['cores']} cores, load {host['load_average']:.1f}; "
          f"{host['threads']} threads, torch {host['torch']}")  # fmt: skip
    return host


def write(options: argparse.Namespace, host: Mapping[str, Any], rows: list[dict[str, Any]]) -> None:
    """Write the machine and all measured rows as JSON, unless the command has no file for them."""
    if options.json is None:
        return
    plain = [{k: asdict(v) if isinstance(v, Spread) else v for k, v in row.items()} for row in rows]
    content = {"machine": dict(host), "quick": options.quick, "rows": plain}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(content, indent=1) + "\n")
    print(f"written: {options.json}")
