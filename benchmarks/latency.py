"""What pruning saves in time: a pruned network beside its original, in PyTorch and in ONNX Runtime.

Calls of the two networks are timed in turn, pair by pair, in one process, so that a drifting machine hurts
both alike. A round is half a second of such pairs, and its figures are their medians; the table prints the
median of the rounds, quartiles in brackets. ``share`` is the realised speed-up over the one that the
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
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parent.parent))  # run as a script, it has its own folder there alone

import lpslim
from benchmarks import pairs
from benchmarks.pairs import HEADER, LINE, Networks, Row
from lpslim.base import files
from lpslim.base.errors import UserError
from lpslim.data.splits import example as blank_input
from lpslim.models import storage
from lpslim.models.storage import Architecture


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
    return pairs.of(large, small, blank_input(described.input_shape))


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
    networks = pairs.of(copy.deepcopy(dense).cpu(), copy.deepcopy(pruned).cpu(), example.cpu())
    torch.set_num_threads(threads or before)
    try:
        return measured(networks, type(dense).__name__, batches, rounds, pairs.machine())[0]
    finally:
        torch.set_num_threads(before)


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
    rows, note = pairs.in_pytorch(networks, batches, rounds), ""
    print(*rows, sep="\n", flush=True)
    try:
        found = pairs.in_onnx_runtime(networks, batches, rounds, host["threads"])
        print(*found, sep="\n")
        rows += found
    except UserError as problem:
        print(note := f"ONNX Runtime: not measured: {problem}")
    return rows, note


def report(options: argparse.Namespace) -> None:
    """Measure, print, and write the file if one is asked for."""
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    networks, host = load(options.network, options.dense), pairs.machine()
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
