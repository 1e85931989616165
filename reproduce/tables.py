"""Tables of published and measured figures, rendered from the records: ``python -m reproduce.tables``."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from lpslim.base import files
from lpslim.base.errors import UserError
from lpslim.experiment import records
from lpslim.experiment.records import Record
from reproduce import markup, published
from reproduce.aggregate import Group, best, by_pair, filter_outdated, slug, with_protocol
from reproduce.compare import BAND, BANDS, Claim, claims, footnote
from reproduce.markup import Line, escaped
from reproduce.names import PROTOCOL, named
from reproduce.published import TITLES

PLACE = {"depth": "Depth", "task": "Task", "block": "Block", "method": "Method", "schedule": "Schedule",
         "finetune_epochs": "Epochs", "params_millions": "Params (M)"}  # fmt: skip
CELLS = {"top1": "Top-1 (%)", "top5": "Top-5 (%)", "score": "Score", "flops_drop": "FLOPs drop (%)",
         "params_drop": "Params drop (%)"}  # fmt: skip
MOST = 50  # lines of a table of measurements on a page; the CSV file has all
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
PAGES = Path(__file__).parent / "pages"


def published_line(claim: Claim) -> Line:
    """Return a line of a published table: what was measured beside what was published."""
    row, group = claim.row, claim.group
    line: Line = {head: row.place[key] for key, head in PLACE.items() if key in row.place}
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
        }
    epochs = " / ".join(str(group.first.epochs.get(s, "-")) for s in ("baseline", "sparsify", "finetune"))
    return {**line, "n": group.n, "Epochs": epochs, "Data": group.first.data.source}


def overview_line(title: str, rows: Sequence[Sequence[Claim]]) -> Line:
    """Return a line on a published table: how many ``rows`` of the paper's method are measured."""
    configured = sum(row[0].group is not None for row in rows)
    other = sum(row[0].group is None and len(row) > 1 for row in rows)
    judged = [claim for row in rows for claim in row if claim.difference is not None]
    within = sum(claim.status.endswith("within") for claim in judged)
    return {
        "Table of the paper": title,
        "Configured": f"{configured} of {len(rows)}",
        "Other": str(other),
        "Not run": str(len(rows) - configured - other),
        "Difference": sum(claim.difference or 0.0 for claim in judged) / len(judged) if judged else None,
        "Verdict": f"{within} of {len(judged)} within" if judged else None,
    }


def documents(
    found: Sequence[Record], protocol: str, outdated: bool = False, figures: Sequence[str] = ()
) -> tuple[dict[str, str], str, str]:
    """Return ``{path below results: content}`` of tables and index page, README's block, and a summary."""
    shown, old = filter_outdated(found, outdated)
    shown, lacking = with_protocol(shown, protocol)
    remarks = [f"- {escaped(text)}\n" for text in (*old, *lacking)]
    runs: dict[str, list[Record]] = {}
    for record in shown:
        runs.setdefault(record.experiment, []).append(record)
    pages, overview, measured, sections, index = {}, [], [], [], []
    for table, title in TITLES.items():
        rows = published.read(table)
        answers = [claims(row, rows, runs, protocol) for row in rows]
        overview.append(overview_line(title, [answer for answer in answers if answer[0].row.experiment]))
        lines = [published_line(claim) for answer in answers for claim in answer]
        notes = [f"- {row.experiment}: {row.note}.\n" for row in rows if row.experiment and row.note]
        notes += [text for text in remarks if f": {table}/" in text]
        sources = {footnote(c.group.first.data) for answer in answers for c in answer if c.group} - {""}
        notes += [f"- {escaped(text)}.\n" for text in sorted(sources)]
        content = {"title": title, "table": section(lines), "band": BANDS.get(table, BAND)}
        pages[f"tables/table_{table}.md"] = page("table", protocol, notes, **content)
        pages[f"tables/table_{table}.csv"] = markup.csv(lines)
        pages[f"tables/table_{table}.tex"] = markup.latex(lines)
    for pair, groups in by_pair(shown).items():
        metric = groups[0].first.data.metric
        title = f"{pair[1]} on {pair[0]}" + f" ({metric})" * (metric != "accuracy")
        lines = measured_lines(groups, protocol)
        measured += [{"Network": title, **line} for line in lines]
        if len(groups) > MOST:
            title += f", best {MOST} of {len(groups)}"
            lines = measured_lines(best(groups, protocol, MOST), protocol)
        sections.append(f"### {escaped(title)}\n\n{section(lines)}")
        images = [name for name in sorted(figures) if name.endswith(f"_{slug(pair)}")]
        index += [sections[-1], *(f"![{name}](figures/{name}.png)" for name in images)]
    block = page("overview", protocol, table=markup.markdown(markup.texts(overview)))
    pages["README.md"] = page("index", protocol, remarks, overview=block)
    pages["README.md"] += "".join(f"\n{part}\n" for part in index)
    pages["tables/measured.csv"] = markup.csv(measured)
    return pages, block, "\n\n".join([*sections, f"### The paper's tables\n\n{block}", "".join(remarks)])


def page(name: str, protocol: str, remarks: Sequence[str] = (), **content: object) -> str:
    """Return the page of this name below ``pages/`` with its content, and remarks as lines of a list."""
    text = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    return text.format(protocol=PROTOCOL[protocol], remarks="".join(remarks), **content).rstrip() + "\n"


def section(lines: Sequence[Line]) -> str:
    """Return a Markdown table, and below it what is equal in all its lines."""
    table, remark = markup.condensed(lines)
    return markup.markdown(table) + f"\n\n{escaped(remark)}" * bool(remark)


def update_readme(readme: Path, content: str) -> None:
    """Replace what stands between the two markers in ``readme``; UserError where they are not there."""
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    parts = re.split(f"({BEGIN}|{END})", text)
    if parts[1::2] != [BEGIN, END]:
        raise UserError(f"--readme {readme}: must be a file with {BEGIN} and {END} once each, in this order")
    files.write_text(readme, f"{parts[0]}{BEGIN}\n{content}{END}{parts[-1]}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the tables and print what was measured; return the exit code (2: the user's mistake)."""
    parser = argparse.ArgumentParser("python -m reproduce.tables", description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of records/, tables/")
    parser.add_argument("--protocol", choices=PROTOCOL, default="last", help="which accuracy to print")
    parser.add_argument("--outdated", action="store_true", help="also what older code measured, with a mark")
    parser.add_argument("--readme", type=Path, help=f"also renew the text between {BEGIN} and {END}")
    options = parser.parse_args(arguments)
    results: Path = options.results
    try:
        found = records.read_all(results)
        figures = [path.stem for path in (results / "figures").glob("*.png")]
        pages, overview, text = documents(found, options.protocol, options.outdated, figures)
        if options.readme:
            update_readme(options.readme, overview)
    except UserError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    for name, content in pages.items():
        files.write_text(results / name, content)
    print(text, f"Written: {results}/README.md and {results}/tables/", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
