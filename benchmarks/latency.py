"""What pruning saves in time: a pruned network beside its original, in PyTorch and in ONNX Runtime.

Calls of the two networks are timed in turn, pair by pair, in one process, so that a drifting machine hurts
both alike. A round is half a second of such pairs, and its figures are their medians; the table prints the
median of the rounds, lowest and highest in brackets. ``share`` is the realised speed-up over the one that the
multiply-adds promise: 1 would be all of it. Half a minute for small images, more where a pair of calls takes
longer than a round:

    python benchmarks/latency.py outputs/runs/<name>/<key>/pruned --threads 2

Two networks of your own, from Python: ``benchmarks.latency.compare(model, pruned.model, image)``.

Without a network: VGG-16 for images of 32x32, every layer cut to half its channels, in three rounds.

What to expect: the share is not 1. Narrow layers use a processor less well, and what is not a multiply-add
is not saved in the same measure; but what is left may fit a cache that the original did not. Wide brackets
say that the machine was busy, and the figures worth little: nothing else should run at the same time.
"""

from __future__ import annotations

import argparse
import copy
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

import lpslim
from lpslim import architecture, cost, export, records, store
from lpslim.architecture import Architecture
from lpslim.cost import Cost
from lpslim.errors import UserError
from lpslim.splits import example as blank_input

ROUND = 0.5  # seconds
HEADER = ("engine", "batch", "dense ms", "pruned ms", "speed-up", "FLOPs ratio", "share")
LINE = "{:<13} {:>5} {:>24} {:>24} {:>18} {:>12} {:>6}"

Works = tuple[Callable[[], object], Callable[[], object]]


@dataclass(frozen=True)
class Networks:
    """An original and its pruned form in evaluation mode, and what both cost. shape: of one input."""

    dense: nn.Module
    pruned: nn.Module
    shape: tuple[int, ...]
    dense_cost: Cost
    pruned_cost: Cost

    @property
    def flops_ratio(self) -> float:
        """The original's multiply-adds over the pruned network's."""
        return self.dense_cost.macs / self.pruned_cost.macs


@dataclass(frozen=True)
class Spread:
    """One figure per round, their median, lowest and highest."""

    rounds: tuple[float, ...]
    median: float
    low: float
    high: float

    @classmethod
    def of(cls, rounds: Sequence[float]) -> Spread:
        """Summarise."""
        return cls(tuple(rounds), median(rounds), min(rounds), max(rounds))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


@dataclass(frozen=True)
class Row:
    """One line of the table. speed_up: dense / pruned, round by round; share: its median / FLOPs ratio."""

    engine: str
    batch: int
    dense_ms: Spread
    pruned_ms: Spread
    speed_up: Spread
    flops_ratio: float
    share: float

    def __str__(self) -> str:
        cells = (str(self.dense_ms), str(self.pruned_ms), str(self.speed_up))
        return LINE.format(self.engine, self.batch, *cells, f"{self.flops_ratio:.2f}", f"{self.share:.2f}")


def row(engine: str, batch: int, seconds: Sequence[tuple[float, float]], flops_ratio: float) -> Row:
    """Return the line of one measurement. seconds: (dense, pruned) of each round."""
    dense, pruned = (Spread.of([1e3 * each for each in side]) for side in zip(*seconds, strict=True))
    speed_up = Spread.of([before / after for before, after in seconds])
    return Row(engine, batch, dense, pruned, speed_up, flops_ratio, speed_up.median / flops_ratio)


def timed(work: Callable[[], object]) -> float:
    """Return the wall time of one call in seconds."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure(works: Works, rounds: int) -> list[tuple[float, float]]:
    """Return the median seconds of either work in each round, their calls taking turns."""
    dense, pruned = works
    warm = [timed(dense) + timed(pruned) for _ in range(3)]
    pairs = max(1, int(ROUND / min(warm)))
    found = []
    for _ in range(rounds):
        calls = [(timed(dense), timed(pruned)) for _ in range(pairs)]
        found.append((median(before for before, _ in calls), median(after for _, after in calls)))
    return found


def inputs(shape: tuple[int, ...], batch: int) -> Tensor:
    """Return random images, or texts of full length."""
    return torch.randn(batch, *shape) if len(shape) == 3 else blank_input(shape, batch)


def in_pytorch(networks: Networks, batches: Sequence[int], rounds: int) -> list[Row]:
    """Measure in PyTorch: inference mode, channels last."""

    def work(model: nn.Module, images: Tensor) -> Callable[[], object]:
        if images.ndim == 4:
            model.to(memory_format=torch.channels_last)
            images = images.contiguous(memory_format=torch.channels_last)
        return torch.inference_mode()(lambda: model(images))

    rows = []
    for batch in batches:
        images = inputs(networks.shape, batch)
        works = work(networks.dense, images), work(networks.pruned, images)
        rows.append(row("PyTorch", batch, measure(works, rounds), networks.flops_ratio))
    return rows


def in_onnx_runtime(networks: Networks, batches: Sequence[int], rounds: int, threads: int) -> list[Row]:
    """Measure in ONNX Runtime.

    Raises:
        UserError: its packages are not installed, or an exported network is not the one in PyTorch.
    """
    with TemporaryDirectory() as folder:
        dense = exported(networks.dense, networks.shape, Path(folder) / "dense.onnx", threads)
        pruned = exported(networks.pruned, networks.shape, Path(folder) / "pruned.onnx", threads)
    rows = []
    for batch in batches:
        images = inputs(networks.shape, batch)
        works = (lambda x=images: export.logits(dense, x), lambda x=images: export.logits(pruned, x))
        rows.append(row("ONNX Runtime", batch, measure(works, rounds), networks.flops_ratio))
    return rows


def exported(model: nn.Module, shape: tuple[int, ...], path: Path, threads: int) -> Any:
    """Return ONNX Runtime's session of a network, after a check of its logits."""
    example = blank_input(shape)
    export.write(model, example, path)
    if not (agreement := export.compare(model, example, path)).holds:
        raise UserError(f"{path.name} differs from PyTorch by {agreement.difference:.2g}")
    return export.session(path, threads)


def half_vgg16() -> Architecture:
    """Return VGG-16 for images of 32x32, every layer cut to half its channels."""
    dense = Architecture("vgg", "vgg16", (3, 32, 32), {"num_classes": 10})
    model = dense.build()
    return replace(dense, kept={each.layer: list(range(each.size // 2)) for each in dense.units(model)})


def folder_of(path: Path) -> Path:
    """Return the folder of a network: ``path`` itself, or ``pruned`` in a run's folder."""
    in_run = path / "pruned"
    return in_run if (in_run / architecture.DESCRIPTION).is_file() else path


def load(pruned: Path | None, dense: Path | None) -> Networks:
    """Return the two networks; the example if no folder is given.

    Raises:
        UserError: a folder holds no network, or the two take inputs of different shapes.
    """
    described = architecture.describe(folder_of(pruned)) if pruned else half_vgg16()
    if described.family is None:
        raise UserError(
            f"{pruned}: {described.name} is a network of your own, and this command cannot build it; from "
            "Python: benchmarks.latency.compare(<the dense one>, <the pruned one>, <an image>)"
        )
    small = lpslim.load(folder_of(pruned)) if pruned else described.build().eval()
    if dense:
        other = architecture.describe(folder_of(dense)).input_shape
        if other != described.input_shape:
            raise UserError(f"--dense {dense}: takes inputs of {other}, not {described.input_shape}")
        large = lpslim.load(folder_of(dense))
    else:  # fresh weights: how long a network takes does not depend on them
        large = replace(described, kept={}).build().eval()
    return of(large, small, blank_input(described.input_shape))


def of(dense: nn.Module, pruned: nn.Module, example: Tensor) -> Networks:
    """Return two networks in evaluation mode with what they cost. example: (1, C, H, W), or tokens."""
    costs = cost.count(dense, example), cost.count(pruned, example)
    return Networks(dense.eval(), pruned.eval(), tuple(example.shape[1:]), *costs)


def compare(
    dense: nn.Module,
    pruned: nn.Module,
    example: Tensor,
    *,
    batches: Sequence[int] = (1, 32),
    rounds: int = 9,
    threads: int | None = None,
) -> list[Row]:
    """Measure two networks on the CPU, print the table and return its rows; the networks stay as they are.

    example: (1, C, H, W). threads: PyTorch's default if not given.
    """
    before = torch.get_num_threads()
    networks = of(copy.deepcopy(dense).cpu(), copy.deepcopy(pruned).cpu(), example.cpu())
    torch.set_num_threads(threads or before)
    try:
        return measured(networks, type(dense).__name__, batches, rounds, machine(threads or before))[0]
    finally:
        torch.set_num_threads(before)


def machine(threads: int) -> dict[str, Any]:
    """Return what the figures depend on besides the networks."""
    return {
        **records.environment("cpu"),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "onnxruntime": version("onnxruntime") if find_spec("onnxruntime") else None,
        "load_average": os.getloadavg()[0],
    }


def processor() -> str:
    """Return the processor's name as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def positive(text: str) -> int:
    """Read a positive whole number from the command line."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("network", type=Path, nargs="?", help="folder of a run or of a pruned network")
    parser.add_argument("--dense", type=Path, help="folder of the original; default: rebuilt")
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads(), metavar="N")
    parser.add_argument("--batches", type=positive, nargs="+", default=[1, 32], metavar="N")
    parser.add_argument("--rounds", type=positive, metavar="N", help="default 9; 3 without a network")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured to a file")
    options = parser.parse_args(arguments)
    if options.dense and not options.network:
        parser.error("--dense needs a network to compare with")
    return options


def measured(
    networks: Networks, title: str, batches: Sequence[int], rounds: int, host: dict[str, Any]
) -> tuple[list[Row], str]:
    """Measure and print; return the rows, and why ONNX Runtime's are missing if they are."""
    print(f"{title}: inputs of {networks.shape}, {rounds} rounds")
    print(
        f"{host['processor']}, {host['cores']} cores, load {host['load_average']:.1f}; "
        f"{host['threads']} threads, torch {torch.__version__}"
    )
    print(LINE.format(*HEADER))
    rows, note = in_pytorch(networks, batches, rounds), ""
    print(*rows, sep="\n", flush=True)
    try:
        found = in_onnx_runtime(networks, batches, rounds, host["threads"])
        print(*found, sep="\n")
        rows += found
    except UserError as problem:
        print(note := f"ONNX Runtime: not measured: {problem}")
    return rows, note


def report(options: argparse.Namespace) -> None:
    """Measure, print, and write the file if one is asked for."""
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    networks, host = load(options.network, options.dense), machine(options.threads)
    rounds = options.rounds or (9 if options.network else 3)
    title = str(options.network or "VGG-16, half its channels")
    rows, note = measured(networks, title, options.batches, rounds, host)
    if options.json:
        costs = {"dense": asdict(networks.dense_cost), "pruned": asdict(networks.pruned_cost)}
        found = {"network": str(options.network or ""), "machine": host, "cost": costs}
        store.write_json(options.json, {**found, "rows": [asdict(each) for each in rows], "note": note})


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit code (2: the user's mistake)."""
    try:
        report(parse(arguments))
    except (UserError, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
