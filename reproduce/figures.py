"""Render every figure from the records: ``python -m reproduce.figures [--selection last|val|paper]``."""

from __future__ import annotations

import argparse
import io
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from lpslim import index
from lpslim.base import files
from lpslim.base.errors import UserError
from lpslim.base.hashing import canonical
from lpslim.experiment.config import PROTOCOLS
from lpslim.experiment.records import Record
from reproduce import plots, provenance, published
from reproduce.claims import is_original
from reproduce.groups import ADMM_NEEDS, Group, grouped, sparsified
from reproduce.labels import PROTOCOL, labels
from reproduce.plots import Series, literal
from reproduce.published import Row

WIDTH, HEIGHT = 9.0, 3.6  # inches, without the legend
DPI = 200  # 1,800 pixels wide, to be shown at 900
LEGEND_LINE = 0.22  # inches
TITLE_WIDTH = 100  # characters
SHORT_NAME = 14  # characters of a legend entry, of which five or six fit side by side
PUBLISHED = "data: as published"
KINDS = ("residuals_", "channels_", "comparison_", "accuracy_vs_flops_")
STYLE: Any = {
    "font.size": 10, "axes.titlesize": 10, "legend.fontsize": 9, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True, "grid.color": "#E8E8E8",
    "lines.linewidth": 1.5, "svg.hashsalt": "lpslim", "font.family": "DejaVu Sans",
}  # fmt: skip
FORMATS: dict[str, dict[str, Any]] = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}


def published_rows(pair: tuple[str, str]) -> list[Row]:
    """Return the published rows of a data set and model, none if the paper has no such table."""
    if pair not in published.PAIRS:
        return []
    table, depth = published.PAIRS[pair]
    return [row for row in published.read(table) if row.place.get("depth") == depth]


def residuals_figure(drawn: Sequence[Series], title: str) -> Figure:
    """Return the ADMM's residuals, and the shares of zeros and capped weights beside them."""
    figure, (left, right) = _figure(title, drawn, 0, 2)
    plots.residuals(left, drawn)
    plots.shares(right, drawn)
    _finish(figure, [left])
    return figure


def channels_figure(drawn: Sequence[Series], title: str) -> Figure:
    """Return the units that each layer keeps."""
    figure, (axes,) = _figure(title, drawn, 1, 1)
    plots.channels(axes, drawn)
    _finish(figure, [axes])
    return figure


def accuracy_figure(drawn: Sequence[Series], title: str, rows: Sequence[Row], selection: str) -> Figure:
    """Return accuracy against FLOPs drop: axes for each data source, the published with the original's."""
    sources: dict[str, list[Series]] = {PUBLISHED: []} if rows else {}
    doubtful = provenance.disputed(each.group.first for each in drawn)
    for each in drawn:
        first = each.group.first
        original = rows and is_original(first.data) and first.data["fingerprint"] not in doubtful
        sources.setdefault(PUBLISHED if original else provenance.source(first, doubtful), []).append(each)
    figure, panels = _figure(title, drawn, len(sources) + 6 * bool(rows), len(sources))
    for axes, (source, measured) in zip(panels, sources.items(), strict=True):
        if measured:
            plots.measured_accuracy(axes, measured, selection)
        if source == PUBLISHED:
            plots.published_accuracy(axes, rows)
        plots.frame(axes, aside=len(measured) > 1, metric=drawn[0].group.metric)
        axes.set_title(source if source == PUBLISHED else literal(f"data: {source}"))
    _finish(figure, panels)
    return figure


def ranking_figure(drawn: Sequence[Series], title: str, selection: str) -> Figure:
    """Return the accuracies of methods at one budget, the best on top."""
    lines = sum(1 + each.label.count("\n") for each in drawn)
    figure = Figure(figsize=(WIDTH, 1.4 + LEGEND_LINE * lines), layout="constrained")
    figure.suptitle(literal(title, TITLE_WIDTH), fontsize=11)
    axes = figure.subplots()
    plots.ranking(axes, drawn, selection)
    _finish(figure, [axes])
    return figure


def one_budget(groups: Sequence[Group]) -> str:
    """Return what all groups save alike on the same data, such as ``50 % of the multiply-adds removed``.

    Empty if there is no such thing, or only one group.
    """
    if len({group.first.data["fingerprint"] for group in groups}) > 1:
        return ""
    for key, name in (("flops_drop", "multiply-adds"), ("params_drop", "parameters")):
        drops = [group.cost(key).mean for group in groups]
        if len(drops) > 1 and max(drops) - min(drops) < plots.NEAR:
            return f"{sum(drops) / len(drops):.0f} % of the {name} removed"
    return ""


def _figure(title: str, drawn: Sequence[Series], more: int, panels: int) -> tuple[Figure, list[Any]]:
    """Return a figure whose height leaves room for a legend of ``drawn`` and ``more`` one-line entries."""
    lines = more + sum(1 + each.label.count("\n") for each in drawn)
    figure = Figure(figsize=(WIDTH, HEIGHT + LEGEND_LINE * (1 + lines // 2)), layout="constrained")
    figure.suptitle(literal(title, TITLE_WIDTH), fontsize=11)
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def _finish(figure: Figure, panels: Sequence[Any]) -> None:
    """Add the legend, and lay the figure out once: a second time would move things a little."""
    entries: dict[str, Any] = {}
    for axes in panels:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(name, handle)
    short = max(map(len, entries)) < SHORT_NAME
    columns = len(entries) if short or len(entries) <= 3 else 2
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns, frameon=False)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def figures(found: Sequence[Record], selection: str, outdated: bool = False) -> dict[str, Figure]:
    """Return ``{"<kind>_<data set>_<model>": figure}`` for every pair that has records.

    Runs that diverged are not drawn, nor, without ``outdated``, what older code measured. A pair of
    which no run used the ADMM has no residuals to show. Where all runs have one budget, they are
    compared line by line, and against FLOPs only beside published figures. Of more configurations than
    marks can tell apart, the best are drawn, and the title says so.

    Raises:
        UserError: the records hold two results of one configuration and seed.
    """
    pairs: dict[tuple[str, str], list[Group]] = {}
    shown, _ = provenance.sift(found, outdated)
    for group in grouped(record for record in shown if not record.diverged):
        pairs.setdefault(group.pair, []).append(group)
    made = {}
    for pair, every in sorted(pairs.items()):
        suffix, where = re.sub(r"[^A-Za-z0-9._-]+", "-", "_".join(pair)), f"{pair[1]} on {pair[0]}"
        groups = best(every, selection)
        own = [record for group in groups for record in group.records]
        if len(groups) < len(every):
            where += f", best {len(groups)} of {len(every)}"
        if any(map(provenance.outdated, own)):
            where += f" ({provenance.OUTDATED} measured by older code, or counted otherwise)"
        if admm := sparsified(own):
            drawn = plots.series(admm, labels(admm, ADMM_NEEDS))
            made[f"residuals_{suffix}"] = residuals_figure(drawn, f"ADMM of {where}")
        names = labels(groups)
        if widths := alike(groups, names):
            made[f"channels_{suffix}"] = channels_figure(plots.series(*widths), f"What is kept, {where}")
        drawn, rows = plots.series(groups, names), published_rows(pair)
        if budget := one_budget(groups):
            made[f"comparison_{suffix}"] = ranking_figure(drawn, f"{where}, {budget}", selection)
        if budget and not rows:
            continue
        title = f"{where}, {groups[0].metric} {PROTOCOL[selection]}"
        made[f"accuracy_vs_flops_{suffix}"] = accuracy_figure(drawn, title, rows, selection)
    return made


def best(groups: Sequence[Group], selection: str) -> list[Group]:
    """Return the groups that are drawn, in their order: all, or of too many those of highest accuracy."""
    means = [group.accuracy("finetune", selection).mean for group in groups]
    first = sorted(range(len(groups)), key=lambda i: -means[i])[: plots.MOST]
    return [groups[i] for i in sorted(first)]


def alike(groups: Sequence[Group], names: Sequence[str]) -> tuple[list[Group], list[str]] | None:
    """Return one group for each choice of widths, under the names of all that share it.

    None where no run removed channels. Networks with other layers than the one with most are left out.
    """
    found: dict[str, tuple[Group, list[str]]] = {}
    layers: set[str] = max((set(group.first.channels) for group in groups), key=lambda each: len(each))
    for group, name in zip(groups, names, strict=True):
        if group.first.channels and set(group.first.channels) <= layers:
            widths = canonical([record.channels for record in group.records])
            found.setdefault(widths, (group, []))[1].append(name)
    shared = [(group, "; ".join(names)) for group, names in found.values()]
    return ([group for group, _ in shared], [name for _, name in shared]) if shared else None


def rendered(figure: Figure, form: str) -> bytes:
    """Return the file of a figure as ``png`` or ``svg``: the same bytes for the same figure."""
    stream = io.BytesIO()
    figure.savefig(stream, format=form, dpi=DPI, metadata=FORMATS[form])
    return stream.getvalue()


def main(arguments: Sequence[str] | None = None) -> int:
    """Write every figure; return the exit code (2: the user's mistake)."""
    parser = argparse.ArgumentParser("python -m reproduce.figures", description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of records/, figures/")
    parser.add_argument("--selection", choices=PROTOCOLS, default="last", help="which accuracy to draw")
    parser.add_argument("--outdated", action="store_true", help="also what older code measured, with a mark")
    options = parser.parse_args(arguments)
    try:
        render(options.results, options.selection, options.outdated)
    except UserError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    return 0


def render(results: Path, selection: str, outdated: bool = False) -> None:
    """Write every figure below ``results`` as PNG and SVG; print the paths, and what is not drawn.

    Figures of before that these records do not give are named, and left to the reader to delete.

    Raises:
        UserError: a record cannot be read.
    """
    found = index.read_all(results)
    if not found:
        print(f"no records below {results / 'records'}: nothing to draw")
        return
    folder = results / "figures"
    written = set()
    with matplotlib.rc_context(STYLE):
        for name, figure in figures(found, selection, outdated).items():
            for form in FORMATS:
                path = folder / f"{name}.{form}"
                store.write_bytes(path, rendered(figure, form))
                print(path)
                written.add(path)
    for remark in provenance.sift(found, outdated)[1]:
        print(f"- {remark}")
    for path in sorted(folder.glob("*")):
        if path not in written and path.suffix[1:] in FORMATS and path.stem.startswith(KINDS):
            print(f"- {path} is of before: no record gives it now")


if __name__ == "__main__":
    sys.exit(main())
