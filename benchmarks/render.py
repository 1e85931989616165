"""Renew the tables of docs/latency.md from what benchmarks/latency_targets.py has written; measures nothing.

python benchmarks/render.py
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent))  # run as a script, it has its own folder there alone

from benchmarks.layers import Line
from benchmarks.timing import RESULTS
from lpslim.base import files
from lpslim.base.errors import UserError
from reproduce import markup

PAGE = Path(__file__).parent.parent / "docs" / "latency.md"
COLUMNS = [(engine, batch) for batch in (32, 1) for engine in ("ONNX Runtime", "PyTorch")]
IN_DETAIL = (
    ("vgg16_cifar10/flops60", "any, not filled up"),
    ("vgg16_cifar10/flops60", "any"),
    ("resnet56_flops58", "any"),
    ("resnet56_flops58", "multiples of 8"),
    ("resnet50_imagenet/flops62", "any"),
    ("bert_glue", "any"),
)
SMALL = 0.01  # of the time in both networks: such operators are summed up
CAUSES = {
    "ReorderInput": "reordering",
    "ReorderOutput": "reordering",
    "Add": "additions, activations",
    "Relu": "additions, activations",
    "BiasGelu": "additions, activations",
    "FusedMatMul": "attention",
    "MatMul": "attention",
    "Softmax": "attention",
    "Where": "attention",
}
GAPS = ("untouched layers", "smaller layers", *dict.fromkeys(CAUSES.values()), "other operators")


def title(row: Mapping[str, Any]) -> str:
    """Return a row's network and what was removed."""
    return f"{row['network'].rpartition('/')[2]}, {100 * row['flops_drop']:.1f} %"


def speed(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of speed-ups: median, quartiles, and the share of the FLOPs ratio."""
    lines = []
    for row in rows:
        measured = {(each["engine"], each["batch"]): each for each in row["latency"]}
        line = {"Network, FLOPs drop": title(row), "Widths": row["variant"]}
        line["FLOPs ratio"] = f"{row['latency'][0]['flops_ratio']:.2f}"
        for engine, batch in COLUMNS:
            line[f"{engine}, batch {batch}"] = cell(measured.get((engine, batch)))
        lines.append(line)
    return markup.markdown(lines)


def cell(measured: Mapping[str, Any] | None) -> str:
    """Return a speed-up with its quartiles, and the share of the FLOPs ratio; empty if not measured."""
    if measured is None:
        return ""
    found = measured["speed_up"]
    return f"{found['median']:.2f} ({found['low']:.2f}-{found['high']:.2f}): {100 * measured['share']:.0f} %"


def both(row: Mapping[str, Any]) -> list[tuple[Line, Line]]:
    """Return the lines of a row, dense and pruned side by side; an empty one where a network has none."""
    sides = [{each["name"]: Line(**each) for each in row[side]} for side in ("dense", "pruned")]
    names = sorted(
        {**sides[0], **sides[1]}, key=lambda name: not any(s[name].is_layer for s in sides if name in s)
    )
    nothing = Line("", False, 0, 0, 0.0, 0)
    return [(sides[0].get(name, nothing), sides[1].get(name, nothing)) for name in names]


def ratio(row: Mapping[str, Any]) -> float:
    """Return the FLOPs ratio of a row's networks."""
    dense, pruned = (sum(each["macs"] for each in row[side]) for side in ("dense", "pruned"))
    return dense / pruned


def by_layer(row: Mapping[str, Any]) -> str:
    """Return where the time of one pair of networks goes, layer by layer and operator by operator."""
    pairs, promised = both(row), ratio(row)
    total = [sum(line.ms for line in side) for side in zip(*pairs, strict=True)]
    large, small = [], [Line("other operators", False, 0, 0, 0.0, 0)] * 2
    for pair in pairs:
        if pair[0].is_layer or any(
            line.ms >= SMALL * all_ms for line, all_ms in zip(pair, total, strict=True)
        ):
            large.append(pair)
        else:
            small = [added(rest, line) for rest, line in zip(small, pair, strict=True)]
    lines = [detail(*pair, promised) for pair in [*large, tuple(small)]]
    lines.append(
        {
            "Layers": "all",
            "M multiply-adds": "",
            "ms": f"{total[0]:.2f} → {total[1]:.2f}",
            "Realised": f"{100 * total[0] / total[1] / promised:.0f} %",
            "Missing ms": f"{total[1] - total[0] / promised:.2f}",
            "Blocked": "",
        }
    )
    return markup.markdown(lines)


def added(rest: Line, line: Line) -> Line:
    """Return the sum of two lines of operators, under the first one's name."""
    return Line(rest.name, False, rest.count + line.count, 0, rest.ms + line.ms, 0)


def detail(dense: Line, pruned: Line, promised: float) -> dict[str, markup.Value]:
    """Return one line of :func:`by_layer`. promised: the FLOPs ratio of the networks."""
    name = dense.name or pruned.name
    is_layer = dense.is_layer
    of_layer = f"{100 * (dense.ms / pruned.ms) / (dense.macs / pruned.macs):.0f} %" if is_layer else ""
    return {
        "Layers": f"{name} ({dense.count})" if is_layer else f"{name} ({dense.count} → {pruned.count})",
        "M multiply-adds": f"{dense.macs / 1e6:.1f} → {pruned.macs / 1e6:.1f}" if is_layer else "",
        "ms": f"{dense.ms:.2f} → {pruned.ms:.2f}",
        "Realised": of_layer,
        "Missing ms": f"{pruned.ms - dense.ms / promised:.2f}",
        "Blocked": f"{dense.blocked} → {pruned.blocked}" if is_layer else "",
    }


def gaps(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the pruned networks' time beyond the promised one, by cause, in percent of their time."""
    lines = []
    for row in rows:
        promised, sums = ratio(row), dict.fromkeys(GAPS, 0.0)
        pairs = both(row)
        for dense, pruned in pairs:
            sums[cause(dense, pruned)] += pruned.ms - dense.ms / promised
        total = sum(pruned.ms for _, pruned in pairs)
        line = {"Network, FLOPs drop": title(row), "Widths": row["variant"]}
        line["Beyond"] = f"{100 * sum(sums.values()) / total:.0f} %"
        lines.append(line | {name: f"{100 * ms / total:.0f} %" for name, ms in sums.items()})
    return markup.markdown(lines)


def cause(dense: Line, pruned: Line) -> str:
    """Return the column of :func:`gaps` that a line counts in."""
    if dense.is_layer:
        return GAPS[dense.macs != pruned.macs]
    return CAUSES.get(dense.name or pruned.name, GAPS[-1])


def blocks(content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each block of the page."""
    rows, host = content["rows"], content["machine"]
    versions = f"PyTorch {host['torch']}, ONNX Runtime {host['onnxruntime']}"
    where = f"{host['processor']}, {host['cores']} cores, load {host['load_average']:.1f} before the start"
    yield "machine", f"{where}; threads: {host['threads']}; {versions}.\n"
    yield "speed", speed(rows)
    yield "gaps", gaps(rows)
    shown = [
        row
        for row in rows
        if any(name in row["experiment"] and row["variant"] == of for name, of in IN_DETAIL)
    ]
    yield (
        "layers",
        "\n".join(f"**{title(row)}; widths: {row['variant']}**\n\n{by_layer(row)}" for row in shown),
    )


def renewed(text: str, found: Iterator[tuple[str, str]]) -> str:
    """Return a page with its marked blocks replaced.

    Raises:
        UserError: the page lacks a block's marks.
    """
    for name, block in found:
        begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise UserError(f"the page must have the lines {begin.strip()} and {end} once each")
        before, rest = text.split(begin)
        text = f"{before}{begin}{block}{end}{rest.split(end)[1]}"
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Renew the page; return the exit code (2: the user's mistake)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=RESULTS / "latency_targets.json", metavar="FILE")
    parser.add_argument("--page", type=Path, default=PAGE, metavar="FILE")
    options = parser.parse_args(arguments)
    try:
        content = json.loads(options.json.read_text(encoding="utf-8"))
        page = renewed(options.page.read_text(encoding="utf-8"), blocks(content))
        store.write_text(options.page, page)
    except (UserError, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    print(f"written: {options.page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
