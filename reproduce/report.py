"""A page of everything that was measured, in one file that loads nothing: ``python -m reproduce.report``."""

import html
import io
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import matplotlib.style
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from lpslim.base import files
from lpslim.base.errors import UserError
from lpslim.experiment import records
from lpslim.experiment.records import Record
from reproduce import figures, markup, plots, published
from reproduce.aggregate import PROTOCOL, Group, best, by_pair, outdated, run_command, slug, to_show
from reproduce.claims import BANDS, Claim, every_claim
from reproduce.compare import FIGURE, TABLE, pairs
from reproduce.details import details, identity
from reproduce.findings import pair_line, verdict
from reproduce.markup import Line
from reproduce.names import plain
from reproduce.options import command_line
from reproduce.published import OURS, TITLES
from reproduce.tables import FRONT, LINES, PAGES, measured_lines, overview_line, published_line

STYLE = {"svg.fonttype": "none", "savefig.transparent": True}  # texts stay texts
THEME = {"#000000": "currentColor", "#ffffff": "var(--paper)", "#e8e8e8": "var(--rule)"}  # light or dark


def page(found: Sequence[Record], protocol: str, with_outdated: bool = False) -> str:
    """Return the page, with the accuracies of ``protocol`` and, if asked for, what older code measured."""
    shown, remarks = to_show(found, protocol, with_outdated)
    with matplotlib.style.context([figures.STYLE, STYLE]):
        drawn = figures.figures(shown, protocol)
        compared = [_compared(pair, groups, protocol, drawn) for pair, groups in by_pair(shown).items()]
        answers = every_claim(shown, protocol)
        paper = [_paper(table, own, protocol, drawn) for table, own in answers.items()]
    environment = Environment(loader=FileSystemLoader(PAGES), autoescape=True, trim_blocks=True,
                              lstrip_blocks=True, undefined=StrictUndefined)  # fmt: skip
    return environment.get_template("report.html").render(
        protocol=PROTOCOL[protocol],
        remarks=remarks,
        verdict=verdict([pair for groups in by_pair(shown).values() for pair in pairs(groups, protocol)]),
        overview=markup.texts([part["overview"] for part in paper]),
        paper=paper,
        compared=compared,
        first=max((part for part in compared if part["figure"]), key=lambda part: part["rank"], default=None),
        listing=_listing(shown, protocol) if shown else "",
        runs=[details(run, protocol) for run in shown],
        diverged=sum(run.diverged is not None for run in shown),
    )


def _paper(
    table: str, answers: Sequence[Sequence[Claim]], protocol: str, drawn: Mapping[str, Figure]
) -> dict[str, Any]:
    """Return what the page says of one table of the paper."""
    every = [claim for answer in answers for claim in answer]
    lines: dict[bool, list[Line]] = {True: [], False: []}
    for claim in every:
        lines[claim.row.method == OURS or claim.row.is_dense].append(published_line(claim))
    figure = _against_flops(table, every, protocol)
    if table == TABLE and (costs := drawn.get(FIGURE)):
        figure = svg(costs, "Accuracy lost by pruning an encoder on each task, published and measured")
    ours = [answer for answer in answers if answer[0].row.experiment]
    return {
        "title": TITLES[table],
        "name": table,
        "overview": overview_line(TITLES[table], ours),
        "ours": markup.condensed(lines[True]),
        "others": markup.condensed(lines[False]),
        "figure": figure,
        "caption": _caption(table, any(claim.measured for claim in every)),
        "rows": len(ours),
        "missing": [run_command(claim.row.experiment) for claim, *_ in ours if claim.group is None],
        "target": f"make reproduce-table-{table.partition('_')[0]} PROFILE=paper",
        "band": BANDS[table],
    }


def _caption(table: str, measured: bool) -> str:
    """Return what the marks and bars are in the figure of one table of the paper."""
    if table == TABLE:
        means = "mean over seeds, bar: standard deviation, from n = 3"
        return f"Hollow: published, of BERT-base. Filled: other encoders, measured here; {means}"
    bars = "bar: 95 % interval over seeds; marks of one budget stand side by side"
    filled = f"pale where epochs were scaled; {bars}" if measured else "which no row is yet"
    return f"Hollow: published. Filled: measured here, {filled}"


def _against_flops(table: str, every: Sequence[Claim], protocol: str) -> Markup | None:
    """Draw accuracy against FLOPs drop, a panel per network; None for a table without FLOPs."""
    networks = [pair for pair, (name, _) in published.PAIRS.items() if name == table]
    if not networks:
        return None
    figure = Figure(figsize=(figures.WIDTH, figures.HEIGHT))
    for axes, network in zip(figure.subplots(1, len(networks), squeeze=False)[0], networks, strict=True):
        rows = published.rows_of(network)
        groups = [claim.group for claim in every if claim.group and claim.measured and claim.row in rows]
        plots.accuracy(axes, groups, rows, protocol)
        axes.set(title=network[1] if len(networks) > 1 else "", xlabel="FLOPs drop (%)")
    alternative = f"{TITLES[table]}: accuracy against FLOPs drop, published and measured, as in the table"
    return svg(figures.with_legend(figure), alternative)


def _compared(
    network: tuple[str, str], groups: Sequence[Group], protocol: str, drawn: Mapping[str, Figure]
) -> dict[str, Any]:
    """Return what the page says of the methods that pruned one network on one data set."""
    shown, name, metric = best(groups, protocol, LINES), slug(network), groups[0].first.data.metric
    title = markup.heading(network, metric, len(shown), len(groups))
    kinds = [kind for kind in (f"comparison_{name}", f"accuracy_vs_flops_{name}") if kind in drawn]
    caption = plain(drawn[kinds[0]].get_suptitle()).replace(r"\$", "$") if kinds else ""
    if kinds:
        drawn[kinds[0]].suptitle("")
    return {
        "title": title,
        "name": name,
        "lines": markup.condensed(measured_lines(shown, protocol)),
        "figure": svg(drawn[kinds[0]], f"{caption}; the numbers stand in the table") if kinds else None,
        "caption": caption,
        "differences": markup.condensed([pair_line(pair) for pair in pairs(groups, protocol)[:LINES]]),
        "rank": (bool({*kinds} & {*FRONT}), max(len(group.runs) for group in groups), len(groups)),
    }


def _listing(shown: Sequence[Record], protocol: str) -> Markup:
    """Return the table of all runs, which itables makes sortable and searchable."""
    from itables.javascript import generate_init_offline_itables_html, to_html_datatable  # of the extra
    from itables.options import dt_bundle

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"  # a dash is no text to the table, and sorts last

    lines = []
    for run in shown:
        final, dense = (run.accuracy.get(stage, {}).get(protocol) for stage in ("finetune", "baseline"))
        name = f"{run.experiment} {run.key[:6]}"
        state = "outdated" if outdated(run) else "other settings" if run.differs else "complete"
        line = {
            "Run": Markup('<a href="#{}">{}</a>').format(identity(run), name), "Method": plain(run.method),
            "Network": run.config["model"]["name"], "Data": run.data.name, "Seed": run.seed,
            "Final (%)": number(final), "Dense (%)": number(dense),
            "FLOPs drop (%)": number(run.cost.flops_drop), "Params drop (%)": number(run.cost.params_drop),
            "Epochs": sum(run.epochs.values()), "Hours": number(sum(run.seconds.values()) / 3600),
            "State": Group((), (run,)).failure or state,
        }  # fmt: skip
        lines.append({head: str(Markup.escape(cell)) for head, cell in line.items()})
    table = pd.DataFrame(lines)
    filtered = [list(table).index(head) for head in ("Method", "Network", "Data", "State")]
    options: dict[str, Any] = {
        "table_id": "all-runs", "classes": "display compact", "style": "width:100%", "showIndex": False,
        "connected": False, "allow_html": True, "maxBytes": 0, "pageLength": 25,
        "text_in_header_can_be_selected": False,  # a click there sorts
        "columnDefs": [{"targets": filtered, "columnControl": [["searchList"]]}],
    }  # fmt: skip
    return Markup(generate_init_offline_itables_html(dt_bundle) + to_html_datatable(table, **options))


def svg(figure: Figure, alternative: str) -> Markup:
    """Return a figure as a part of the page, in its colours, with the text that stands in for it."""
    buffer, metadata = io.StringIO(), dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": alternative}):  # no two figures share an identity
        figure.savefig(buffer, format="svg", metadata=metadata)
    text = buffer.getvalue()
    text = re.sub(r' id="[A-Za-z.]+(2d)?_\d+"|<metadata>.*?</metadata>', "", text, flags=re.S)
    text = re.sub(r"\s*\n\s*", " ", text[text.index("<svg") :])
    for colour, variable in THEME.items():
        text = text.replace(colour, variable)
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{html.escape(alternative)}"', 1))


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page; exits with code 2 after a mistake of the user's."""
    parser = command_line("report", __doc__)
    options = parser.parse_args(arguments)
    try:
        if not find_spec("itables"):
            raise UserError("itables is not installed: python -m pip install '.[report]'")
        text = page(records.read_all(options.results), options.protocol, options.outdated)
        files.write_text(options.results / "index.html", text)
    except (UserError, OSError) as problem:
        parser.exit(2, f"error: {problem}\n")
    print(options.results / "index.html")


if __name__ == "__main__":
    main()
