"""Tables of published and measured figures, rendered from the records: ``python -m reproduce.tables``."""

import re
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from lpslim.base import files
from lpslim.base.errors import UserError
from lpslim.experiment import records
from lpslim.experiment.records import Record
from reproduce import compare, markup
from reproduce.aggregate import PROTOCOL, Group, best, by_pair, how_to_run, progress, slug, to_show
from reproduce.claims import BANDS, Claim, every_claim, footnote, is_short
from reproduce.compare import Pair, pairs
from reproduce.findings import answers, pair_line, verdict
from reproduce.markup import Line, escaped, section
from reproduce.names import named
from reproduce.options import command_line, folder
from reproduce.plots import PAPER
from reproduce.published import OURS, TITLES

PLACE = {"depth": "Depth", "task": "Task", "row": "Row", "block": "Block", "method": "Method",
         "schedule": "Schedule", "finetune_epochs": "Fine-tune epochs",
         "params_millions": "Params (M)"}  # fmt: skip
CELLS = {"top1": "Top-1 (%)", "top5": "Top-5 (%)", "score": "Score", "flops_drop": "FLOPs drop (%)",
         "params_drop": "Params drop (%)"}  # fmt: skip
DRAWN = ("accuracy_vs_flops", "channels", "comparison", "pull", "residuals")  # figures of a network
LINES = 50  # lines of a table of measurements on a page; the CSV file has all
FRONT = ("accuracy_vs_flops_cifar10_resnet56", "comparison_cifar10_resnet20")  # README shows the first drawn
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
PAGES = Path(__file__).parent / "pages"


def published_line(claim: Claim) -> Line:
    """Return a line of a published table: what was measured beside what was published."""
    row, group = claim.row, claim.group
    place = {**row.place, "row": row.experiment.rpartition("/")[2] or None}
    if row.method == OURS:
        place["method"] = PAPER
    line: Line = {head: place[key] for key, head in PLACE.items() if key in place}
    for column, head in CELLS.items():
        if column in row.cells:
            line[f"{head}, published"] = None if group and group.first.differs else row.cells[column]
            line[f"{head}, measured"] = claim.measured.get(column)
    line |= {"n": group.n if group else None, "Data": group.first.data.source if group else None}
    return {**line, "Difference": claim.difference, "Status": claim.status}


def measured_lines(groups: Sequence[Group], protocol: str) -> list[Line]:
    """Return a line per configuration: the ADMM's first, then rivals, then controls, each kind by name."""
    return [_measured_line(name, group, protocol) for name, group in named(groups)]


def _measured_line(name: str, group: Group, protocol: str) -> Line:
    line: Line = {"Method": name, "Dense (%)": None, "Pruned (%)": None, "Fine-tuned (%)": group.failure}
    if group.runs:
        line |= {
            "Dense (%)": group.accuracy("baseline", protocol),
            "Pruned (%)": group.accuracy("prune", protocol),
            "Fine-tuned (%)": group.accuracy("finetune", protocol),
            "Drop (points)": group.drop(protocol),
            "FLOPs drop (%)": group.cost("flops_drop"),
            "Params drop (%)": group.cost("params_drop"),
            "Training (10^12 multiply-adds)": group.training(),
        }
    epochs = " / ".join(str(group.first.epochs.get(s, "-")) for s in ("baseline", "sparsify", "finetune"))
    return {
        **line,
        "n": group.n,
        "Epochs (dense / sparsify / fine-tune)": epochs,
        "Precision": group.arithmetic["trainer.precision"],
        "Data": group.first.data.source,
    }


def overview_line(title: str, rows: Sequence[Sequence[Claim]]) -> Line:
    """Return a line on a published table: how many ``rows`` of the paper's method are measured, and how.

    Of a row that was measured in several arithmetics, the one with the most seeds counts, else the first.
    """
    configured = sum(row[0].group is not None for row in rows)
    measured = [[claim.group.first for claim in row if claim.group] for row in rows if not row[0].group]
    short = sum(any(map(is_short, runs)) for runs in measured)
    judged = [
        max(own, key=lambda claim: claim.measured[claim.row.column].n)
        for row in rows
        if (own := [claim for claim in row if claim.difference is not None])
    ]
    within = sum(claim.status.endswith("within") for claim in judged)
    return {
        "Table of the paper": title,
        "As configured": f"{configured} of {len(rows)}",
        "Short": str(short),
        "Not run": str(len(rows) - configured - short),
        "Difference": fmean(claim.difference or 0.0 for claim in judged) if judged else None,
        "Verdict": f"{within} of {len(judged)} within" if judged else None,
    }


def documents(
    found: Sequence[Record], protocol: str, outdated: bool = False, figures: Sequence[str] = ()
) -> tuple[dict[str, str], dict[str, str], str]:
    """Return tables and index page by their paths below results, blocks of pages by theirs, and a summary."""
    shown, left = to_show(found, protocol, outdated)
    remarks = [f"- {escaped(text)}\n" for text in left]
    pages, overview, paper, claimed = {}, [], [], []
    for table, every in every_claim(shown, protocol).items():
        title, rows = TITLES[table], [row[0].row for row in every]
        overview.append(overview_line(title, [row for row in every if row[0].row.experiment]))
        claimed += (flat := [claim for row in every for claim in row])
        lines = [published_line(claim) for claim in flat]
        notes = [f"- {row.experiment}: {row.note}.\n" for row in rows if row.experiment and row.note]
        notes += [text for text in remarks if f": {table}/" in text]
        sources = {footnote(claim.group.first.data) for claim in flat if claim.group} - {""}
        notes += [f"- {escaped(text)}.\n" for text in sorted(sources)]
        content = {"title": title, "table": section(lines), "band": BANDS[table]}
        pages[f"tables/table_{table}.md"] = page("table", protocol, notes, how=how_to_run(table), **content)
        pages |= written(f"table_{table}", lines)
        if any(claim.group for claim in flat):
            ours = [published_line(claim) for claim in flat if claim.row.experiment]
            ours = [{k: v for k, v in line.items() if k not in ("Block", "Method")} for line in ours]
            paper.append(f"\n### {title}\n\n{section(ours)}\n")
    measured, sections, compared = _measured(shown, protocol, figures)
    table, judged = markup.markdown(markup.texts(overview)), verdict(compared)
    block = page("overview", protocol, table=table, verdict=f"\n**{judged}**\n" if judged else "")
    front = [f"\n![{name}](results/figures/{name}.png)\n" for name in FRONT if name in figures][:1]
    blocks = {"README.md": block + "".join(front), "docs/findings.md": answers(compared, claimed)}
    lines = [pair_line(pair) for pair in compared]
    pages |= written("measured", measured) | written("paired", lines)
    if found_drops := compare.drop_lines(compare.drops(shown, protocol)):
        pages |= written("drops", found_drops)
        paper.append(page("drops", protocol, table=section(found_drops)))
        if compare.FIGURE in figures:
            paper.append(f"\n![{compare.FIGURE}](figures/{compare.FIGURE}.png)\n")
    parts = {"overview": block, "paper": "".join(paper), "pairs": section(lines[:LINES])}
    pages["README.md"] = page("index", protocol, remarks, **parts)
    pages["README.md"] += "".join(f"\n{part}\n" for part in sections)
    summary = [part for part in sections if not part.startswith("!")]
    summary += [f"### The paper's method against the others\n\n{parts['pairs']}"]
    return pages, blocks, "\n\n".join([*summary, f"### The paper's tables\n\n{block}", "".join(remarks)])


def _measured(
    shown: Sequence[Record], protocol: str, figures: Sequence[str]
) -> tuple[list[Line], list[str], list[Pair]]:
    """Return a line per configuration, the index page's tables and figures, and the pairs, by network."""
    measured: list[Line] = []
    sections, compared = [], []
    for network, groups in by_pair(shown).items():
        metric, several = groups[0].first.data.metric, best(groups, protocol, LINES)
        lines = measured_lines(groups, protocol)
        measured += [{"Network": markup.heading(network, metric), **line} for line in lines]
        title = markup.heading(network, metric, len(several), len(groups))
        lines = measured_lines(several, protocol)
        sections.append(f"### {escaped(title)}\n\n{section(lines)}")
        images = [name for name in sorted(figures) if name in {f"{kind}_{slug(network)}" for kind in DRAWN}]
        sections += [f"![{name}](figures/{name}.png)" for name in images]
        compared += pairs(groups, protocol)
    return measured, sections, compared


def written(name: str, lines: Sequence[Line]) -> dict[str, str]:
    """Return a table's CSV and LaTeX files by their paths below results."""
    return {f"tables/{name}.csv": markup.csv(lines), f"tables/{name}.tex": markup.latex(lines)}


def page(name: str, protocol: str, remarks: Sequence[str] = (), **content: object) -> str:
    """Return the page of this name below ``pages/`` with its content, and remarks as lines of a list."""
    text = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    return text.format(protocol=PROTOCOL[protocol], remarks="".join(remarks), **content).rstrip() + "\n"


def update_block(path: Path, content: str) -> None:
    """Replace what stands between the two markers in a page; UserError where they are not there."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    parts = re.split(f"({BEGIN}|{END})", text)
    if parts[1::2] != [BEGIN, END]:
        raise UserError(f"--readme: {path} must have {BEGIN} and {END} once each, in this order")
    files.write_text(path, f"{parts[0]}{BEGIN}\n{content}{END}{parts[-1]}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the tables and print what was measured; exits with code 2 after a mistake of the user's."""
    parser = command_line("tables", __doc__)
    parser.add_argument("--readme", type=Path, help="renew the marked text there and in docs/findings.md")
    parser.add_argument("--rows", type=folder, nargs="+", default=[], help="folders of experiments to count")
    options = parser.parse_args(arguments)
    results: Path = options.results
    try:
        found = records.read_all(results)
        figures = [path.stem for path in (results / "figures").glob("*.png")]
        pages, blocks, text = documents(found, options.protocol, options.outdated, figures)
        for name, content in blocks.items() if options.readme else ():
            path = options.readme if name == "README.md" else options.readme.parent / name
            if path == options.readme or path.exists():
                update_block(path, content)
        for name, content in pages.items():
            files.write_text(results / name, content)
    except (UserError, OSError) as problem:
        parser.exit(2, f"error: {problem}\n")
    for rows in options.rows:
        page_of = f"tables/table_{rows.name}.md" if rows.name in TITLES else "README.md"
        print(f"{progress(rows, found)}. Table: {results / page_of}")
    if not options.rows:
        print(text, f"Written: {results}/README.md and {results}/tables/", sep="\n")


if __name__ == "__main__":
    main()
