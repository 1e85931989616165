"""From groups of runs to axes: convergence, channels kept, accuracy against FLOPs. No files here."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation, Transform

from lpslim.experiment.statistics import SPREAD_FROM
from reproduce.groups import Group, dense_networks
from reproduce.labels import FAMILIES, family
from reproduce.markup import plain
from reproduce.published import OURS, Row, number

# Okabe and Ito's palette for colour-blind readers, without its yellow, which is faint on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = "os^Dv<>Ph*X"
MOST = len(COLOURS) * len(MARKERS)  # series, no two of which have both in common
GREY = "#8A8A8A"
LEGEND_WIDTH = 46  # characters
MOST_UNLIKE = 20  # times as wide: then shares are drawn
MOST_TICKS = 20  # layer names that fit side by side
NEAR, ASIDE = 1.0, 0.14  # points of FLOPs drop, inches
SPAN = 10.0  # points of FLOPs drop that an axis shows at least


@dataclass(frozen=True)
class Series:
    """A group as it is drawn: its label and its marks."""

    group: Group
    label: str
    colour: str
    marker: str


def series(groups: Sequence[Group], names: Sequence[str]) -> list[Series]:
    """Give every group a colour and a marker; no two of the first MOST have both in common."""
    return [
        Series(group, literal(name), COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)])
        for i, (group, name) in enumerate(zip(groups, names, strict=True))
    ]


def literal(text: str, width: int = LEGEND_WIDTH) -> str:
    """Return ``text`` wrapped at ``width`` characters, shown as it is: a dollar sign begins no formula."""
    wrapped = textwrap.fill(plain(text), width).replace("$", r"\$")
    return f" {wrapped}" if wrapped[:1] in ("", "_") else wrapped  # such a name would be in no legend


def convergence(group: Group) -> pd.DataFrame:
    """Return the ADMM series, mean over seeds: primal, dual, sparsity, capped by outer iteration."""
    rows = [row for record in group.records for row in record.convergence]
    return pd.DataFrame(rows).groupby("iteration").mean()


def residuals(axes: Axes, drawn: Sequence[Series]) -> None:
    """Draw ||W - Z|| (solid) and rho ||Z_new - Z_old|| (dashed) by outer iteration."""
    tables = [convergence(each.group) for each in drawn]
    for each, table in zip(drawn, tables, strict=True):
        axes.plot(table.index, table["primal"], color=each.colour, marker=each.marker, ms=4, label=each.label)
        axes.plot(table.index, table["dual"], "--", color=each.colour, marker=each.marker, ms=4, mfc="white")
    values = pd.concat([table[["primal", "dual"]] for table in tables]).to_numpy()
    if (values > 0).any():
        axes.set_yscale("log", nonpositive="mask")
    note = "" if (values > 0).all() else ", zeros not drawn"  # Z may be zero altogether, and stay so
    axes.set(xlabel="outer ADMM iteration", ylabel=f"residual (L2 norm{note})")
    axes.set_title(r"primal $\|W-Z\|$ solid, dual $\rho\,\|Z_{new}-Z_{old}\|$ dashed")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def shares(axes: Axes, drawn: Sequence[Series]) -> None:
    """Draw the share of zeros in Z (solid) and of capped weights (dotted), in percent."""
    for each in drawn:
        table = 100 * convergence(each.group)
        index = table.index
        axes.plot(index, table["sparsity"], color=each.colour, marker=each.marker, ms=4)
        axes.plot(index, table["capped"], ":", color=each.colour, marker=each.marker, ms=4, mfc="white")
    axes.set(xlabel="outer ADMM iteration", ylabel="share of entries (%)", ylim=(-4, 104))
    axes.set_title("zeros in Z solid, capped dotted")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def channels(axes: Axes, drawn: Sequence[Series]) -> None:
    """Draw the units that each layer keeps, mean over seeds, before the dense widths in grey.

    Layers that a run does not list were protected: it keeps them whole. Where layers are of very different
    widths, as heads and neurons are, shares are drawn in place of numbers, kind by kind.
    """
    widest = max((each.group.first.channels for each in drawn), key=len)
    dense = {layer: of for layer, (_, of) in widest.items()}
    as_shares = max(dense.values()) > MOST_UNLIKE * min(dense.values())
    kinds = by_kind(list(dense)) if as_shares else [list(dense)]
    layers = [layer for kind in kinds for layer in kind]
    scale = {layer: 100 / of if as_shares else 1.0 for layer, of in dense.items()}
    heights = [dense[layer] * scale[layer] for layer in layers]
    axes.bar(range(len(layers)), heights, width=0.9, color="#E4E4E4", label="dense network")
    for i, each in enumerate(drawn):
        records = each.group.records
        offset = 0.5 * ((i + 0.5) / len(drawn) - 0.5)  # so that equal values do not hide each other
        begin = 0
        for kind in kinds:
            kept = [scale[layer] * np.mean([r.channels.get(layer, (dense[layer],))[0] for r in records])
                    for layer in kind]  # fmt: skip
            places = [begin + place + offset for place in range(len(kind))]
            label = each.label if begin == 0 else None
            axes.plot(places, kept, color=each.colour, marker=each.marker, ms=4, lw=0.8, label=label)
            begin += len(kind)
    every = -(-len(layers) // MOST_TICKS)
    names = [literal(name) for name in without_common_prefix(layers)[::every]]
    axes.set_xticks(range(0, len(layers), every), names, rotation=60, ha="right")
    axes.tick_params(axis="x", labelsize=8)
    order = "input to output" if len(kinds) == 1 else "each kind from input to output"
    axes.set(xlabel=f"prunable layer, {order}", xlim=(-0.7, len(layers) - 0.3))
    axes.set_ylabel("share kept (%)" if as_shares else "channels")
    axes.set_ylim(bottom=0)


def by_kind(layers: Sequence[str]) -> list[list[str]]:
    """Return the layers in lists of those whose names differ in numbers alone, each in the given order."""
    found: dict[str, list[str]] = {}
    for layer in layers:
        found.setdefault(re.sub(r"\d+", "", layer), []).append(layer)
    return list(found.values())


def without_common_prefix(names: Sequence[str]) -> list[str]:
    """Return dotted names without the parts that all begin with, should these be two or more."""
    parts = [name.split(".") for name in names]
    common = 0
    while all(len(each) > common + 1 and each[common] == parts[0][common] for each in parts):
        common += 1
    return [".".join(each[common if common > 1 else 0 :]) for each in parts]


def measured_accuracy(axes: Axes, drawn: Sequence[Series], selection: str) -> None:
    """Draw fine-tuned accuracy against FLOPs drop, filled, ± SD from three runs on; the dense as a line.

    Marks less than NEAR points apart are moved sideways, on the paper only, so that all can be seen.
    """
    drops = [each.group.cost("flops_drop").mean for each in drawn]
    for i, each in enumerate(drawn):
        value = each.group.accuracy("finetune", selection)
        spread = (value.sd or 0.0) if value.n >= SPREAD_FROM else 0.0
        axes.update_datalim([(drops[i], value.mean - spread), (drops[i], value.mean + spread)])
        axes.errorbar(
            drops[i], value.mean, yerr=spread or None, color=each.colour, marker=each.marker, ms=7, capsize=3,
            ls="none", label=f"{each.label} (n={value.n})", transform=_aside(axes, drops, i),
        )  # fmt: skip
    dense = dense_networks(record for each in drawn for record in each.group.records)
    for group in dense:
        level = group.accuracy("baseline", selection).mean
        axes.axhline(level, color=GREY, lw=1, ls="--", label="dense, measured" if group is dense[0] else None)


def ranking(axes: Axes, drawn: Sequence[Series], selection: str) -> None:
    """Draw a line per group, the best fine-tuned accuracy on top, ± SD from three runs on; the dense dashed.

    Colours are kinds of method (:data:`reproduce.labels.FAMILIES`); the methods' names stand on the axis.
    """
    ordered = sorted(drawn, key=lambda each: each.group.accuracy("finetune", selection).mean)
    for place, each in enumerate(ordered):
        value = each.group.accuracy("finetune", selection)
        kind = FAMILIES.index(family(each.group.first.settings))
        spread = value.sd if value.n >= SPREAD_FROM else None
        axes.errorbar(
            value.mean, place, xerr=spread, color=COLOURS[kind], marker=MARKERS[kind], ms=7, capsize=3,
            ls="none", label=FAMILIES[kind],
        )  # fmt: skip
    dense = dense_networks(record for each in drawn for record in each.group.records)
    for group in dense:
        axes.axvline(group.accuracy("baseline", selection).mean, color=GREY, lw=1, ls="--", label="dense")
    names = [f"{each.label} (n={len(each.group.records)})" for each in ordered]
    axes.set_yticks(range(len(ordered)), names)
    axes.set(xlabel=f"test {drawn[0].group.metric} (%)", ylim=(-0.7, len(ordered) - 0.3))
    axes.margins(x=0.08)


def _aside(axes: Axes, drops: Sequence[float], index: int) -> Transform:
    near = [i for i, drop in enumerate(drops) if abs(drop - drops[index]) < NEAR]
    steps = near.index(index) - (len(near) - 1) / 2
    assert axes.figure is not None
    return axes.transData + ScaledTranslation(steps * ASIDE, 0, axes.figure.dpi_scale_trans)


def published_accuracy(axes: Axes, rows: Sequence[Row]) -> None:
    """Draw the published accuracies against FLOPs drop, hollow; black is the paper's own method."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        x, y = number(row.cells["flops_drop"]), number(row.cells["top1"])
        if x is not None and y is not None and not row.is_dense:
            name = "Ji et al." if row.method == OURS else row.method.split("-")[0]  # ELC-0.5 is ELC
            found.setdefault(name, []).append((x, y))
    for marker, (name, points) in zip(MARKERS, sorted(found.items()), strict=False):
        edge = {"mec": "black", "mew": 1.6} if name == "Ji et al." else {"mec": GREY}
        axes.plot(*zip(*points, strict=True), ls="none", marker=marker, ms=7, mfc="none", **edge,
                  label=f"{name}, published")  # fmt: skip


def frame(axes: Axes, aside: bool, metric: str) -> None:
    """Name the axes of an accuracy plot when all is drawn, and show SPAN points of FLOPs drop at least.

    ``aside``: say that marks may have been moved sideways.
    """
    note = "\n(measured marks that coincide are set side by side)" if aside else ""
    axes.set(xlabel=f"FLOPs drop (%){note}", ylabel=f"test {metric} (%)")
    axes.margins(0.12)
    axes.autoscale_view()
    low, high = axes.get_xlim()
    if high - low < SPAN:
        axes.set_xlim((low + high - SPAN) / 2, (low + high + SPAN) / 2)
