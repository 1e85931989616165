"""The page docs/zoo.md, rendered from the JSON of benchmarks/zoo.py and streams.py alone."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lpslim.base.files import read_json

Row = dict[str, Any]
PAGE = Path(__file__).parent.parent / "docs" / "zoo.md"
EXACT = 1.5e-8  # relative difference in float64: the root of its precision
SHORT = 0.003  # a target is met within this
OURS, RIVAL = ("off", "on"), "torch_pruning"
COLUMNS = [("off", 0.3), ("off", 0.5), ("on", 0.3), ("on", 0.5)]
TEXT = """\
# Any network: the zoo

Every family of classification networks in torchvision and three networks of timm, with random weights,
pruned to 30 and 50 % fewer multiply-adds by `lpslim.prune(model, example, target_flops=...)`, with
`coupled` off and on, and by Torch-Pruning's own pruner.

{counts}

{about}

- **Cells**: the share of the multiply-adds that is gone. *Most*: the target was refused, and this is the
  most that the refusal named, asked for in its place. *Refused*: no network came back, for the reason below
  the table.
- **Difference**: the largest one between the pruned network and the silenced original, in which every layer
  that reads a removed channel reads zero there, relative to the largest output: the greatest of the row's
  results. Exact is below {exact:.1e}. Silencing itself moves the outputs by {moved:.1g} or more.
- **Cut**: layers that lost outputs at the target of 0.3, `coupled` off and on, and all convolutions and
  linear layers.
- **Left alone**: layers that kept their width in these two for a reason that `Pruned.left_alone` names.
- **Seconds**: of processor time on one core, the longest of the row's cases, without building the network
  and without this comparison. Most cases ran beside other work, which lengthens even that.
- **Torch-Pruning**: `GroupNormPruner`, group magnitude, global, 2 % of the channels a step until the
  multiply-adds (counted as ours) reach the target; a floor of a tenth, as ours. It is told the classifying
  layer and the heads of `nn.MultiheadAttention`, and nothing else of a network; more of such knowledge
  would mend some rows. Equal means: to the silenced original, by the same comparison.

{table}

{reasons}
"""
STREAMS = """
## What residual streams cost on real data

{network} with its published weights ({dense:.2f} % on CIFAR-10's test images), {target:.1%} of the
multiply-adds removed in three ways, then {epochs} epochs of the same fine-tuning (SGD, learning rate 0.01,
cosine, batch 128, bf16), seed {seed}: one seed, so differences of a few tenths say nothing. Ours by
magnitude; Torch-Pruning as above, in 400 steps. **`coupled=True` minus `coupled=False`, fine-tuned:
{gain:+.2f} points.** Difference: from the silenced original, as above. `python -m benchmarks.streams
--data <folder>` measures this.

{table}
"""
NAMES = {"off": "`coupled=False`", "on": "`coupled=True`", "torch_pruning": "Torch-Pruning, group norm"}


def write(results: Path, page: Path = PAGE) -> None:
    """Write the page from the files zoo.json and streams.json (which may be missing) in a folder."""
    page.write_text(render(results), encoding="utf-8")


def render(results: Path) -> str:
    """Return the page's text."""
    streams = results / "streams.json"
    return zoo(read_json(results / "zoo.json")) + (real(read_json(streams)) if streams.is_file() else "")


def zoo(content: dict[str, Any]) -> str:
    """Return the part on networks with random weights."""
    rows: list[Row] = content["rows"]
    dates = sorted({row["date"] for row in rows})
    packages = ", ".join(f"{name} {number}" for name, number in content["versions"].items())
    machine = content["machine"]["processor"]
    about = "`python -m benchmarks.zoo` measures what `benchmarks/results/zoo.json` lacks, `python -m "
    about += f"benchmarks.zoo --render` renders this page from it. Measured from {dates[0]} to {dates[-1]}: "
    about += f"{machine}, {packages}, by {len({row['code'] for row in rows})} states of the pruning code."
    return TEXT.format(
        counts=counts(rows),
        about=textwrap.fill(about, 108, break_on_hyphens=False),
        exact=EXACT,
        moved=min(row["moved"] for row in rows if row["way"] in OURS and "moved" in row),
        table=table(rows),
        reasons=reasons(rows),
    )


def real(content: dict[str, Any]) -> str:
    """Return the part on real data."""
    settings = content["settings"]
    head = ["way", "multiply-adds", "parameters", "after the cut", "fine-tuned", "difference"]
    lines = [head, ["---"] * len(head)]
    for row in content["rows"]:
        shares = (f"-{row[key]:.1%}" for key in ("reached", "parameters"))
        scores = (f"{row[key]:.2f} %" for key in ("cut_accuracy", "accuracy"))
        lines.append([NAMES[row["method"]], *shares, *scores, f"{row['difference']:.0e}"])
    ends = {row["method"]: row["accuracy"] for row in content["rows"]}
    dense = content["dense_accuracy"]
    return STREAMS.format(**settings, dense=dense, gain=ends["on"] - ends["off"], table=_lines(lines))


def exact(row: Row) -> bool:
    """Return whether a pruned network equals the silenced original, where silencing changes the outputs."""
    return row["outcome"] == "pruned" and row["difference"] <= EXACT < row["moved"]


def reaches(row: Row) -> bool:
    """Return whether a result came back at its target."""
    return row["outcome"] == "pruned" and row["reached"] >= row["target"] - SHORT


def counts(rows: list[Row]) -> str:
    """Return how many families of torchvision are exact, refused, and at 0.3 with coupled channels."""
    families = _grouped([row for row in rows if not row["family"].startswith("timm")], "family")
    ours = {name: [row for row in found if row["way"] in OURS] for name, found in families.items()}
    whole, refused, reached, wrong = 0, 0, 0, []
    for name, found in ours.items():
        words = [row for row in found if row["outcome"] == "refused"]
        if any(row not in words and not exact(row) for row in found):
            wrong.append(name)
        elif len(words) == len(found):
            refused += 1
        else:
            whole += 1
        coupled = [row for row in found if (row["way"], row["target"]) == ("on", 0.3)]
        reached += bool(coupled) and all(map(reaches, coupled))
    said = f"{whole} of {len(ours)} families exact, {refused} refused, "
    said += f"{reached} reach 0.3 with `coupled=True`"
    if wrong:
        said += f"; neither exact nor refused: {', '.join(wrong)}"
    rival = [row for row in rows if (row["way"], row["target"]) == (RIVAL, 0.3)]
    there = [row for row in rival if reaches(row)]
    equal = f"{sum(map(exact, there))} are equal to the silenced original"
    theirs = (
        f"of Torch-Pruning's {len(rival)} results for 0.3, {len(there)} run and reach it, of which {equal}"
    )
    networks = _grouped(rows, "network").values()
    longest = max(row.get("cpu_seconds", 0) for row in rows if row["way"] in OURS)
    bold = (
        f"**{said}; the longest of {len(networks)} networks takes {longest:.0f} s.** Beside them, {theirs}."
    )
    cases = len(networks) * len((*OURS, RIVAL)) * len({row["target"] for row in rows})
    missing = f" {len(rows)} of {cases} cases are measured so far; cells of the others are blank."
    return textwrap.fill(bold + missing * (len(rows) < cases), 108)


def table(rows: list[Row]) -> str:
    """Return one line per network."""
    head = ["network (px)", *(f"{target:g} {way}" for way, target in COLUMNS), "difference",
            "cut", "left alone", "s", "Torch-Pruning, 0.3", "0.5", "s"]  # fmt: skip
    lines = [head, ["---"] * len(head)]
    for name, found in _grouped(rows, "network").items():
        by = {(row["way"], row["target"]): row for row in found}
        at = [by.get((way, 0.3), {}) for way in OURS]
        ours = [row for row in found if row["way"] in OURS]
        differences = [row["difference"] for row in ours if "difference" in row]
        lines.append([
            f"{name} ({found[0]['size']})",
            *(_own(by.get(column)) for column in COLUMNS),
            f"{max(differences):.0e}" if differences else "",
            f"{cut} of {max(row.get('layers', 0) for row in ours)}" if (cut := _pair(at, "narrower")) else "",
            _pair(at, "left_alone"),
            _seconds(ours),
            *(_rival(by.get((RIVAL, target))) for target in (0.3, 0.5)),
            _seconds(row for row in found if row["way"] == RIVAL),
        ])  # fmt: skip
    return _lines(lines)


def reasons(rows: list[Row]) -> str:
    """Return the lists below the table: refusals, what was left alone, and what befell the other pruner."""
    lists = {
        "Refused, or not ended": {
            _key(r): r.get("message", "") for r in rows if r["way"] in OURS and "message" in r
        },
        "Left alone at 0.3: the most frequent reason": {
            f"{row['network']} {row['way']} ({row['reason_layers']} of {row['left_alone']})": row["reason"]
            for row in rows
            if row["way"] in OURS and row["target"] == 0.3 and row.get("left_alone")
        },
        "Torch-Pruning: no result": {
            _key(r): r["message"] for r in rows if r["way"] == RIVAL and "message" in r
        },
    }
    parts = []
    for title, found in lists.items():
        merged: dict[str, list[str]] = {}
        for key, message in found.items():
            merged.setdefault(textwrap.shorten(message, 240, placeholder=" …"), []).append(key)
        items = [f"- {', '.join(keys)}: {message}" for message, keys in merged.items()]
        if items:
            parts.append("\n".join([f"## {title}", "", *items]))
    return "\n\n".join(parts)


def _lines(lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _key(row: Row) -> str:
    way = "" if row["way"] == RIVAL else f" {row['way']}"
    return f"{row['network']} {row['target']:g}{way}"


def _own(row: Row | None) -> str:
    if row is None:
        return ""
    if row["outcome"] != "pruned":
        return row["outcome"]
    share = f"{row['reached']:.2f}"
    if not exact(row):
        return f"**wrong** {share}"
    return f"{share} most" if "most" in row else share


def _rival(row: Row | None) -> str:
    if row is None:
        return ""
    if row["outcome"] != "pruned":
        return {"failed": "does not run"}.get(row["outcome"], row["outcome"])
    equal = "equal" if exact(row) else f"differs by {row['difference']:.1g}"
    return f"{row['reached']:.2f}, {equal}"


def _pair(rows: list[Row], key: str) -> str:
    return ", ".join(str(row[key]) for row in rows if key in row)


def _seconds(rows: Iterable[Row]) -> str:
    times = [row["cpu_seconds"] for row in rows if "cpu_seconds" in row]
    return f"{max(times):.0f}" if times else ""


def _grouped(rows: list[Row], key: str) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row[key], []).append(row)
    return found
