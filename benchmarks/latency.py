"""Latency of a pruned network beside its original, in PyTorch and in ONNX Runtime.

    python benchmarks/latency.py outputs/runs/<name>/<key>/pruned --threads 2
    python benchmarks/latency.py --targets resnet56     # networks of the paper's tables: widths.csv

Calls of the two networks alternate in one process, so that a drifting machine hurts both alike. A round is
half a second of such pairs, and its figures are their medians; the table prints the median of the rounds,
quartiles in brackets. ``share`` is the realised speed-up over the ratio of the multiply-adds: 1 is all of it.
Networks of the tables have fresh weights: time depends on the widths, not on the weights.

From Python, for two networks of your own: ``latency.measure(latency.Pair(model, pruned.model, image))``.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parent.parent))  # run as a script, Python looks in benchmarks/ alone

import lpslim
from benchmarks import timing
from benchmarks.timing import Spread
from lpslim.base.errors import UserError
from lpslim.base.modules import eval_mode, example_input
from lpslim.models import onnx, storage
from lpslim.models.storage import Architecture
from lpslim.pruning import cost

ROUND = 0.5  # seconds
COLUMNS = ("engine", "batch", "dense_ms", "pruned_ms", "speed_up", "flops_ratio", "share")
LINE = "{:<13} {:>5} {:>24} {:>24} {:>18} {:>12} {:>6}"
WIDTHS = Path(__file__).parent / "widths.csv"


@dataclass(frozen=True)
class Pair:
    """An original and its pruned form, on the CPU. example: one blank input."""

    dense: nn.Module
    pruned: nn.Module
    example: Tensor

    @property
    def flops_ratio(self) -> float:
        """The original's multiply-adds over the pruned network's."""
        return cost.count(self.dense, self.example).macs / cost.count(self.pruned, self.example).macs

    def inputs(self, batch: int) -> Tensor:
        """Return random images, or texts of full length."""
        shape = self.example.shape[1:]
        return torch.randn(batch, *shape) if len(shape) == 3 else example_input(shape, batch)


def from_folder(folder: Path) -> Pair:
    """Return the network of a folder (or of ``pruned`` in it) beside its original with fresh weights.

    Raises:
        UserError: there is no network, or it is one that lpslim cannot build.
    """
    inner = folder / "pruned"
    folder = inner if (inner / storage.DESCRIPTION).is_file() else folder
    described = storage.describe(folder)
    if described.family is None:
        raise UserError(
            f"{folder}: {described.name} is a network of your own: use benchmarks.latency.measure"
        )
    return Pair(
        replace(described, kept={}).build(), lpslim.load(folder), example_input(described.input_shape)
    )


def from_widths(row: dict[str, str]) -> Pair:
    """Return the network of a line of widths.csv beside its original, both with fresh weights."""
    shape = tuple(int(size) for size in row["shape"].split())
    dense = Architecture(row["family"], row["name"], shape, json.loads(row["arguments"]))
    model = dense.build()
    widths = [int(width) for width in row["widths"].split()]
    kept = {each.layer: list(range(width)) for each, width in zip(dense.units(model), widths, strict=True)}
    return Pair(model, replace(dense, kept=kept).build(), example_input(shape))


def targets(text: str) -> dict[str, Callable[[], Pair]]:
    """Return the lines of widths.csv whose row has ``text``, each as a function that builds its networks."""
    with open(WIDTHS, encoding="utf-8", newline="") as file:
        return {row["row"]: partial(from_widths, row) for row in csv.DictReader(file) if text in row["row"]}


def in_pytorch(pair: Pair) -> list[Callable[[Tensor], object]]:
    """Return the calls of both networks in PyTorch: inference mode, channels last."""

    def call(model: nn.Module, inputs: Tensor) -> Tensor:
        with torch.inference_mode():
            return model(inputs.contiguous(memory_format=torch.channels_last) if inputs.ndim == 4 else inputs)

    layout = torch.channels_last if pair.example.ndim == 4 else torch.preserve_format
    return [partial(call, model.to(memory_format=layout)) for model in (pair.dense, pair.pruned)]


def in_onnx_runtime(pair: Pair) -> list[Callable[[Tensor], object]]:
    """Return the calls of both networks in ONNX Runtime.

    Raises:
        UserError: its packages are not installed, or an exported network is not the one in PyTorch.
    """
    calls = []
    with TemporaryDirectory() as folder:
        for name, model in (("dense", pair.dense), ("pruned", pair.pruned)):
            path = Path(folder) / f"{name}.onnx"
            onnx.to_onnx(model, pair.example, path)
            calls.append(partial(onnx.logits, onnx.session(path, torch.get_num_threads())))
    return calls


def speed(calls: Sequence[Callable[[Tensor], object]], inputs: Tensor, rounds: int) -> list[list[float]]:
    """Return the median milliseconds of the original, and of the pruned network, in each round."""
    works = [partial(call, inputs) for call in calls]
    warm = [sum(timing.seconds(work) for work in works) for _ in range(3)]
    sides: list[list[float]] = [[], []]
    for _ in range(rounds):
        times = [[timing.seconds(work) for work in works] for _ in range(max(1, int(ROUND / min(warm))))]
        for side, values in zip(sides, zip(*times, strict=True), strict=True):
            side.append(1e3 * median(values))
    return sides


def measure(pair: Pair, batches: Sequence[int] = (1, 32), rounds: int = 9) -> list[dict[str, Any]]:
    """Measure a pair in both engines, print the table and return its rows."""
    print(LINE.format(*COLUMNS))
    flops, rows = pair.flops_ratio, []
    engines = {"PyTorch": in_pytorch, "ONNX Runtime": in_onnx_runtime}
    with eval_mode(pair.dense), eval_mode(pair.pruned):
        for engine, calls_of in engines.items():
            try:
                calls = calls_of(pair)
            except UserError as problem:
                print(f"{engine}: not measured: {problem}")
                continue
            for batch in batches:
                dense, pruned = speed(calls, pair.inputs(batch), rounds)
                gain = Spread.of(before / after for before, after in zip(dense, pruned, strict=True))
                cells = (Spread.of(dense), Spread.of(pruned), gain, flops, gain.median / flops)
                texts = (str(cell) if isinstance(cell, Spread) else f"{cell:.2f}" for cell in cells)
                print(LINE.format(engine, batch, *texts), flush=True)
                rows.append(dict(zip(COLUMNS, (engine, batch, *cells), strict=True)))
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; return the exit code (2: the user's mistake)."""
    parser = timing.parser(__doc__)
    parser.add_argument("network", type=Path, nargs="?", help="folder of a run or of a pruned network")
    parser.add_argument(
        "--targets", default="vgg16", metavar="TEXT", help="rows of widths.csv with this text"
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32], metavar="N")
    options = parser.parse_args(arguments)
    host, rows = timing.begin(options), []
    try:
        folder = {str(options.network): partial(from_folder, options.network)}
        pairs = folder if options.network else targets(options.targets)
        for name, build in pairs.items():
            print(f"\n{name}")
            rounds = 3 if options.quick else 9
            rows += [{"network": name, **row} for row in measure(build(), options.batches, rounds)]
    except (UserError, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    timing.write(options, host, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
