"""An original network beside its pruned form: their calls timed in turn, in PyTorch and in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import timing
from benchmarks.timing import Spread
from lpslim import padding
from lpslim.base.errors import UserError
from lpslim.data.splits import example as blank_input
from lpslim.models import onnx
from lpslim.pruning import cost
from lpslim.pruning.cost import Cost

ROUND = 0.5  # seconds
HEADER = ("engine", "batch", "dense ms", "pruned ms", "speed-up", "FLOPs ratio", "share")
LINE = "{:<13} {:>5} {:>24} {:>24} {:>18} {:>12} {:>6}"

Works = tuple[Callable[[], object], Callable[[], object]]
Finish = Callable[[Path], object]


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
        cells = (short(each) for each in (self.dense_ms, self.pruned_ms, self.speed_up))
        return LINE.format(self.engine, self.batch, *cells, f"{self.flops_ratio:.2f}", f"{self.share:.2f}")


def short(spread: Spread) -> str:
    """Return a median with its quartiles in brackets."""
    return f"{spread.median:.2f} ({spread.low:.2f}-{spread.high:.2f})"


def row(engine: str, batch: int, seconds: Sequence[tuple[float, float]], flops_ratio: float) -> Row:
    """Return the line of one measurement. seconds: (dense, pruned) of each round."""
    dense, pruned = (Spread.of(1e3 * each for each in side) for side in zip(*seconds, strict=True))
    speed_up = Spread.of(before / after for before, after in seconds)
    return Row(engine, batch, dense, pruned, speed_up, flops_ratio, speed_up.median / flops_ratio)


def of(dense: nn.Module, pruned: nn.Module, example: Tensor) -> Networks:
    """Return two networks in evaluation mode with what they cost. example: (1, C, H, W), or tokens."""
    costs = cost.count(dense, example), cost.count(pruned, example)
    return Networks(dense.eval(), pruned.eval(), tuple(example.shape[1:]), *costs)


def measure(works: Works, rounds: int) -> list[tuple[float, float]]:
    """Return the median seconds of either work in each round, their calls taking turns."""
    dense, pruned = works
    warm = [timing.seconds(dense) + timing.seconds(pruned) for _ in range(3)]
    pairs = max(1, int(ROUND / min(warm)))
    found = []
    for _ in range(rounds):
        calls = [(timing.seconds(dense), timing.seconds(pruned)) for _ in range(pairs)]
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


def in_onnx_runtime(
    networks: Networks, batches: Sequence[int], rounds: int, threads: int, finish: Finish = padding.pad
) -> list[Row]:
    """Measure in ONNX Runtime. finish: see :func:`lpslim.models.onnx.write`.

    Raises:
        UserError: its packages are not installed, or an exported network is not the one in PyTorch.
    """
    with TemporaryDirectory() as folder:
        dense, pruned = (
            exported(model, networks.shape, Path(folder) / f"{name}.onnx", threads, finish)
            for name, model in (("dense", networks.dense), ("pruned", networks.pruned))
        )
    rows = []
    for batch in batches:
        images = inputs(networks.shape, batch)
        works = (lambda x=images: export.logits(dense, x), lambda x=images: export.logits(pruned, x))
        rows.append(row("ONNX Runtime", batch, measure(works, rounds), networks.flops_ratio))
    return rows


def exported(model: nn.Module, shape: tuple[int, ...], path: Path, threads: int, finish: Finish) -> Any:
    """Return ONNX Runtime's session of a network, after a check of its logits.

    Raises:
        UserError: its packages are not installed, or the logits are not PyTorch's.
    """
    example = blank_input(shape)
    export.write(model, example, path, finish)
    if not (agreement := export.compare(model, example, path)).holds:
        raise UserError(f"{path.name} differs from PyTorch by {agreement.difference:.2g}")
    return export.session(path, threads)


def machine() -> dict[str, Any]:
    """Return what the figures depend on besides the networks."""
    return {**timing.machine(), "onnxruntime": version("onnxruntime") if find_spec("onnxruntime") else None}
