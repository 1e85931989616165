"""Plots of groups of runs on given axes: convergence, channels kept, accuracies."""

import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.ticker import MaxNLocator

from lpslim.experiment.statistics import SPREAD_FROM, summary
from reproduce.aggregate import Group, grouped
from reproduce.compare import PUBLISHED, Drops
from reproduce.names import ORDER, plain, scaled
from reproduce.published import OURS, Row

# Okabe and Ito's palette for colour-blind readers, without its yellow, which is faint on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = "os^Dv<>Ph*X"
TOLD_APART = len(COLOURS) * len(MARKERS)  # groups, no two of which have both in common
GREY, PAPER = "#8A8A8A", "Ji et al."
HOLLOW: dict[str, Any] = {"color": "black", "marker": "v", "mfc": "none", "label": "published"}
NEAR = 1.0  # points of a drop: one budget
ADMM = {"primal", "dual", "sparsity", "capped"}  # what its outer iterations record
PULLED = {"gap", "units", "accuracy", "accuracy_if_cut"}  # what an ADMM on channels records
TICKS = 20  # layer names that fit side by side

Series = Sequence[tuple[Group, str, dict[str, Any]]]  # groups with their labels, colours and markers


def series(pairs: Iterable[tuple[str, Group]]) -> Series:
    """Give every group a colour and a marker; no two of the first TOLD_APART have both in common."""
    return [(group, literal(name), marks(i)) for i, (name, group) in enumerate(pairs)]


def marks(i: int) -> dict[str, Any]:
    """Return colour and marker of the group in place ``i``."""
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}


def literal(text: str, width: int = 46) -> str:
    """Return ``text`` wrapped at ``width`` characters, shown as it is: a dollar sign begins no formula."""
    wrapped = textwrap.fill(plain(text), width).replace("$", r"\$")
    return f" {wrapped}" if wrapped[:1] in ("", "_") else wrapped  # such a name would be in no legend


def convergence(panels: Sequence[Axes], drawn: Series) -> None:
    """Draw the residuals, and the shares of zeros and capped weights, by outer iteration, mean over seeds."""
    left, right = panels
    positive: list[bool] = []
    for group, label, style in drawn:
        table = _by_iteration(group)
        left.plot(table["primal"], ms=4, label=label, **style)
        left.plot(table["dual"], "--", ms=4, mfc="white", **style)
        right.plot(100 * table["sparsity"], ms=4, **style)
        right.plot(100 * table["capped"], ":", ms=4, mfc="white", **style)
        positive += (table[["primal", "dual"]] > 0).to_numpy().ravel().tolist()
    if any(positive):
        left.set_yscale("log", nonpositive="mask")
    note = "" if all(positive) else ", zeros not drawn"  # Z may be zero altogether, and stay so
    left.set(xlabel="outer ADMM iteration", ylabel=f"residual (L2 norm{note})")
    left.set_title(r"primal $\|W-Z\|$ solid, dual $\rho\,\|Z_{new}-Z_{old}\|$ dashed")
    right.set(xlabel="outer ADMM iteration", ylabel="share of entries (%)", ylim=(-4, 104))
    right.set_title("zeros in Z solid, capped weights dotted")
    _whole_iterations(panels)


def pulled(panels: Sequence[Axes], drawn: Series) -> None:
    """Draw the accuracy as it is and as if cut now, and what is left of units that go, mean over seeds."""
    left, right = panels
    for group, label, style in drawn:
        table, units = _by_iteration(group), sum(of for _, of in group.first.channels.values())
        left.plot(table["accuracy"], ms=4, label=label, **style)
        left.plot(table["accuracy_if_cut"], "--", ms=4, mfc="white", **style)
        right.plot(100 * table["gap"], ms=4, **style)
        right.plot(100 * table["units"] / units, ":", ms=4, **style)
    data = drawn[0][0].first.data
    measured = f"{'validation' if data.val else 'test'} {data.metric} (%)"
    left.set(xlabel="outer iteration", ylabel=measured, title="as it is solid, as if cut now dashed")
    right.set(xlabel="outer iteration", ylabel="%", yscale="log", ylim=(1e-4, 200))  # less is set to zero
    right.set_title(r"$\|W-Z\|/\|W\|$ solid, units left dotted")
    _whole_iterations(panels)


def channels(axes: Axes, drawn: Series) -> None:
    """Draw the share of its units that each layer keeps, mean over seeds, kind by kind of layer."""
    dense = {layer: of for group, *_ in drawn for layer, (_, of) in group.first.channels.items()}
    kinds: dict[str, list[str]] = {}  # names that differ in numbers alone
    for layer in dense:
        kinds.setdefault(re.sub(r"\d+", "", layer), []).append(layer)
    layers = [layer for kind in kinds.values() for layer in kind]
    ends = np.cumsum([len(kind) for kind in kinds.values()])[:-1]  # no line leads from one kind to the next
    for i, (group, label, style) in enumerate(drawn):
        # layers that a run does not list were protected: it keeps them whole
        of_runs = [[run.channels.get(layer, (1, 1)) for layer in layers] for run in group.runs]
        kept = np.mean([[100 * left / of for left, of in layers_of] for layers_of in of_runs], axis=0)
        places = np.arange(len(layers)) + 0.5 * ((i + 0.5) / len(drawn) - 0.5)  # so that none hides another
        places, kept = np.insert(places, ends, np.nan), np.insert(kept, ends, np.nan)
        axes.plot(places, kept, ms=4, lw=0.8, label=label, **style)
    parts = [layer.split(".") for layer in layers]
    while all(len(words) > 2 and words[:2] == parts[0][:2] for words in parts):
        parts = [words[1:] for words in parts]  # without most of what all names begin with
    ticks = [f"{literal('.'.join(p))} ({dense[layer]})" for p, layer in zip(parts, layers, strict=True)]
    step = -(-len(layers) // TICKS)
    axes.set_xticks(range(0, len(layers), step), ticks[::step], rotation=60, ha="right", fontsize=8)
    axes.set(xlabel="prunable layer (units before pruning)", ylabel="units kept (%)", ylim=(0, 104))


def accuracy(axes: Axes, groups: Sequence[Group], rows: Sequence[Row], protocol: str) -> None:
    """Draw accuracy against FLOPs drop: measured filled, pale where epochs were scaled; published hollow."""
    drops = [group.cost("flops_drop").mean for group in groups]
    step = max(0.3, (max(drops, default=0.0) - min(drops, default=0.0)) / 50)
    methods = list(dict.fromkeys(group.first.method for group in groups))
    for i, group in enumerate(groups):
        mean, error, _ = _spread(group, protocol)
        place = drops[i] + step * sum(abs(drop - drops[i]) < NEAR for drop in drops[:i])
        style = marks(methods.index(group.first.method))
        fill = to_rgba(style["color"], 0.3 if scaled(group.first) else 1.0)
        label = literal(group.first.method) + scaled(group.first)
        axes.errorbar(place, mean, error, ms=7, ls="none", mfc=fill, label=label, zorder=4, **style)
    _dense(axes.axhline, groups, protocol)
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        points.setdefault(source(row), []).append((float(row.cells["flops_drop"]), row.accuracy or 0.0))
    for marker, (name, places) in zip(MARKERS, sorted(points.items()), strict=False):
        edge = "black" if name == PAPER else GREY
        axes.plot(*zip(*places, strict=True), marker, ms=7, mfc="none", mec=edge, label=name, zorder=3)
    notes = ["FLOPs drop (%), measured marks of one budget side by side", "hollow: published"]
    axes.set_xlabel("; ".join([*notes[: 1 + bool(rows)], "bar: 95 % interval over seeds"]))
    axes.set_ylabel(f"test {groups[0].first.data.metric if groups else 'accuracy'} (%)")
    axes.margins(0.08)


def ranking(axes: Axes, drawn: Series, rows: Sequence[Row], protocol: str) -> None:
    """Draw accuracies line by line, the best on top: mean with interval, seeds as dots, published hollow."""
    counts = {len(group.runs) for group, *_ in drawn}
    lines: list[Any] = [(row.accuracy, None, [], _published(row), HOLLOW) for row in rows]
    for group, label, _ in drawn:
        kind = {"label": literal(group.first.kind), **marks(ORDER.get(group.first.kind, len(ORDER)))}
        name = f"{label} (n={len(group.runs)})" if len(counts) > 1 else label
        lines.append((*_spread(group, protocol), name, kind))
    lines.sort(key=lambda line: line[0])
    for place, (mean, error, seeds, _, style) in enumerate(lines):
        axes.errorbar(mean, place, xerr=error, ms=7, ls="none", zorder=4, **style)
        axes.plot(seeds, [place] * len(seeds), ".", ms=5, color=GREY, zorder=5)
    _dense(axes.axvline, [group for group, *_ in drawn], protocol)
    axes.set_yticks(range(len(lines)), [name for *_, name, _ in lines])
    note = f", n = {min(counts)}" if len(counts) == 1 else ""
    note += "; dots: seeds" if max(counts) > 1 else ""
    note += ", bar: 95 % interval" if max(counts) >= SPREAD_FROM else ""
    axes.set(xlabel=f"test {drawn[0][0].first.data.metric} (%){note}", ylim=(-0.7, len(lines) - 0.3))
    axes.margins(x=0.08)


def drops(axes: Axes, found: Drops) -> None:
    """Draw the drop of each series by task, published hollow: means, from n = 3 with the deviation."""
    tasks = list(found[PUBLISHED])
    for i, (name, by) in enumerate(found.items()):
        places = [tasks.index(task) + 0.6 * ((i + 0.5) / len(found) - 0.5) for task in by]
        style = HOLLOW | {"label": name} if name == PUBLISHED else {"label": literal(name), **marks(i - 1)}
        spreads = [one.sd if one.sd is not None and one.n >= SPREAD_FROM else np.nan for one in by.values()]
        axes.errorbar(places, [one.mean for one in by.values()], spreads, ms=7, ls="none", **style)
    axes.axhline(0, color=GREY, lw=1)
    axes.set_xticks(range(len(tasks)), tasks)
    axes.set(
        xlabel="task (metric); bar: standard deviation, from n = 3", ylabel="dense minus fine-tuned (points)"
    )


def _by_iteration(group: Group) -> pd.DataFrame:
    """Return the mean over seeds of what the outer iterations recorded."""
    return pd.DataFrame([row for run in group.runs for row in run.convergence]).groupby("iteration").mean()


def _whole_iterations(panels: Sequence[Axes]) -> None:
    for axes in panels:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def source(row: Row) -> str:
    """Return the name of a published method, without what tells its rows apart: ELC-0.5 is ELC."""
    return PAPER if row.method == OURS else row.method.split("-")[0]


def _published(row: Row) -> str:
    return f"{source(row)}, {row.place['schedule']} {row.place['finetune_epochs']}, published"


def _spread(group: Group, protocol: str) -> tuple[float, float | None, list[float]]:
    """Return mean, half of its 95 % interval (None below three runs), and each value of several seeds."""
    values = [run.accuracy["finetune"][protocol] for run in group.runs]
    found = summary(values)
    half = found.half if found.n >= SPREAD_FROM else None
    return found.mean, half, values if len(values) > 1 else []


def _dense(line: Callable[..., Any], groups: Sequence[Group], protocol: str) -> None:
    """Draw a dashed line per dense network."""
    for dense in grouped((run for group in groups for run in group.runs), "baseline"):
        line(dense.accuracy("baseline", protocol).mean, color=GREY, lw=1, ls="--", label="dense, measured")
