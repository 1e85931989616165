"""Figures of what was measured, rendered from the records: ``python -m reproduce.figures``."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
from matplotlib.figure import Figure

from lpslim.base import files
from lpslim.base.errors import UserError
from lpslim.base.files import canonical
from lpslim.experiment import records
from lpslim.experiment.records import Record
from reproduce import plots, published
from reproduce.aggregate import PROTOCOL, Group, best, by_pair, slug, to_show
from reproduce.claims import is_original
from reproduce.compare import FIGURE, comparable, drops
from reproduce.names import budget, named, scaled, shared
from reproduce.options import command_line
from reproduce.plots import ADMM, NEAR, PULLED, Series, literal
from reproduce.published import number

STYLE = Path(__file__).with_name("figures.mplstyle")
FORMATS: dict[str, dict[str, Any]] = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
WIDTH, HEIGHT, LINE = 9.0, 4.0, 0.22  # inches; a figure's legend comes below its height
TITLE_WIDTH, LEGEND_WIDTH, MARK = 100, 125, 7  # characters; a legend's mark takes as much room as so many


def figures(shown: Sequence[Record], protocol: str) -> dict[str, Figure]:
    """Return ``{"<kind>_<data set>_<model>": figure}`` for every data set and model with runs that ended."""
    made = {}
    for pair, every in by_pair(run for run in shown if not run.diverged).items():
        groups = best(every, protocol, plots.TOLD_APART)
        pairs, title = named(groups), f"{pair[1]} on {pair[0]}"
        title += f", best {len(groups)} of {len(every)}" if len(groups) < len(every) else ""
        title += " († measured by older code)" if any("†" in name for name, _ in pairs) else ""
        if admm := _alike(pairs, lambda r: any(map(ADMM.issubset, r.convergence)) and r.groups["sparsify"]):
            made[f"residuals_{slug(pair)}"] = figure = _figure(f"Convergence of the ADMM, {title}", 2)
            plots.convergence(figure.axes, admm)
        if pull := _alike(pairs, lambda r: any(map(PULLED.issubset, r.convergence)) and r.groups["sparsify"]):
            made[f"pull_{slug(pair)}"] = figure = _figure(f"Channels on their way to zero, {title}", 2)
            plots.pulled(figure.axes, pull)
        if widths := _alike(pairs, lambda run: run.channels and canonical(run.channels)):
            made[f"channels_{slug(pair)}"] = figure = _figure(f"Units kept by layer, {title}", 1)
            plots.channels(figure.axes[0], widths)
        title, rows = f"{title}, {groups[0].first.data.metric} {PROTOCOL[protocol]}", published.rows_of(pair)
        original = [group for group in groups if rows and is_original(group.first.data)]
        compared = max(comparable(groups), key=len)
        if rows or len(compared) < len(groups) or len(groups) == 1:
            made[f"accuracy_vs_flops_{slug(pair)}"] = figure = _figure(title, 1)
            own = [group for group in original if group.first.experiment in {row.experiment for row in rows}]
            plots.accuracy(figure.axes[0], own or original or groups, rows if original else [], protocol)
        if len(compared) > 1:
            drop = compared[0].cost("flops_drop").mean
            near = [row for row in rows if abs((number(row.cells["flops_drop"]) or 0.0) - drop) < NEAR]
            beside, drawn = near if compared[0] in original else [], plots.series(named(compared))
            height = 1.4 + LINE * (len(beside) + sum(1 + label.count("\n") for _, label, _ in drawn))
            title = f"{title}, {budget(compared[0].first)}{scaled(compared[0].first)}"
            made[f"comparison_{slug(pair)}"] = figure = _figure(title, 1, height)
            plots.ranking(figure.axes[0], drawn, beside, protocol)
    if found := drops(shown, protocol):
        made[FIGURE] = figure = _figure(f"Accuracy lost by pruning an encoder, {PROTOCOL[protocol]}", 1)
        plots.drops(figure.axes[0], found)
    return {name: with_legend(figure) for name, figure in made.items()}


def _alike(pairs: Sequence[tuple[str, Group]], key: Callable[[Record], Any]) -> Series:
    """Return the first group of every ``key`` but empty ones, under what the names of its groups share."""
    alike: dict[Any, list[tuple[str, Group]]] = {}
    for name, group in pairs:
        if identity := key(group.first):
            alike.setdefault(identity, []).append((name, group))
    return plots.series((shared([name for name, _ in same]), same[0][1]) for same in alike.values())


def _figure(title: str, panels: int, height: float = HEIGHT) -> Figure:
    figure = Figure(figsize=(WIDTH, height))
    figure.suptitle(literal(title, TITLE_WIDTH))
    figure.subplots(1, panels)
    return figure


def with_legend(figure: Figure) -> Figure:
    """Add one legend below a figure, and lay it out: a second time would move things a little."""
    pairs = [axes.get_legend_handles_labels() for axes in figure.axes]
    entries = {name: handle for pair in pairs for handle, name in zip(*pair, strict=True)}
    ncols = max(1, min(len(entries), LEGEND_WIDTH // (MARK + max(map(len, entries)))))
    figure.legend(entries.values(), entries.keys(), loc="upper center", bbox_to_anchor=(0.5, 0), ncols=ncols)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Write every figure; exits with code 2 after a mistake of the user's."""
    parser = command_line("figures", __doc__)
    options = parser.parse_args(arguments)
    try:
        found = records.read_all(options.results)
        shown, remarks = to_show(found, options.protocol, options.outdated)
        with matplotlib.style.context(STYLE):
            for name, figure in figures(shown, options.protocol).items():
                for form in FORMATS:
                    path = options.results / "figures" / f"{name}.{form}"
                    with files.atomic_file(path) as scratch:
                        figure.savefig(scratch, format=form, metadata=FORMATS[form])
                    print(path)
    except (UserError, OSError) as problem:
        parser.exit(2, f"error: {problem}\n")
    print("\n".join(remarks) if shown or remarks else f"no records to draw below {options.results}")


if __name__ == "__main__":
    main()
