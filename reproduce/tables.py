"""Render every table from the records: ``python -m reproduce.tables [--selection last|val|paper]``."""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lpslim import index
from lpslim.base import files
from lpslim.base.errors import UserError
from lpslim.experiment.config import PROTOCOLS
from lpslim.experiment.records import Record
from reproduce import markup, provenance, published
from reproduce.claims import BAND, BANDS
from reproduce.evidence import Evidence
from reproduce.labels import PROTOCOL
from reproduce.lines import counted, measured_blocks, paper_lines
from reproduce.markup import Line
from reproduce.published import TITLES

REMARKS = {
    "bert_glue": (
        "MiniLM is another encoder (22.7M parameters, 10.6M of them in its layers): its scores are measured "
        "here, and are not BERT-base's.",
    )
}

LONGEST = 200  # lines of the measured table that a terminal is shown
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
NOTHING = "no records below {}: run something first, such as python run.py model=vgg_small dataset=digits"


def notes(selection: str) -> list[str]:
    """Return what the reader of any measured number must know."""
    return [
        f"Measured: test accuracy, or the metric that is named, {PROTOCOL[selection]} "
        f"(selection={selection}); mean ± sample standard deviation over n seeds, ± from n = 3.",
        "FLOPs: multiply-adds of convolution and linear layers. Drops are relative to the dense network.",
    ]


def paper_notes(table: str) -> list[str]:
    """Return what the reader of a published table must know."""
    rows = published.read(table)
    return [
        "Published: Ji et al., Pattern Recognition 2025, 111711; never measured here.",
        f"Verdict: within is a measured mean at most {BANDS.get(table, BAND)} points from the published "
        "figure. On other data than the paper's, drops from the own dense network are compared where the "
        "paper prints one.",
        *REMARKS.get(table, ()),
        *(f"{row.experiment}: {row.note}." for row in rows if row.experiment and row.note),
    ]


@dataclass(frozen=True)
class Block:
    """Lines under one heading, which may stand in several files."""

    lines: list[Line]

    @cached_property
    def markdown(self) -> str:
        """A Markdown table."""
        return markup.markdown(self.lines)

    @cached_property
    def latex(self) -> str:
        """A LaTeX tabular."""
        return markup.latex(self.lines)


def documents(
    found: Sequence[Record], selection: str, outdated: bool = False
) -> tuple[dict[str, str], list[str]]:
    """Return ``{file name: content}`` of every table in every form; and README's block, as paragraphs.

    ``outdated``: also of records that older code measured, or that were counted by another rule.
    """
    files: dict[str, str] = {}
    shown, old = provenance.sift(found, outdated)
    evidence = Evidence(shown)
    measured = {title: Block(lines) for title, lines in measured_blocks(evidence, selection).items()}
    own = _by_table(found)
    for table, title in TITLES.items():
        remarks = [*notes(selection), *paper_notes(table), *_doubts(own[table], outdated)]
        same_roof = {
            f"Measured, same roof: {name}": block
            for name, block in measured.items()
            if published.same_roof(name) == table
        }
        lines = Block(paper_lines(table, evidence, selection))
        files |= _forms(f"table_{table}", title, {"": lines, **same_roof}, remarks)
    remarks = [*notes(selection), *old, *provenance.disputes(shown)]
    files |= _forms("measured", "Measured", measured, remarks)
    return files, markdown_blocks(measured, [*remarks, *counted(evidence, selection)])


def _by_table(found: Sequence[Record]) -> dict[str, list[Record]]:
    """Return the records that may stand in each published table: by their name, or under the same roof."""
    own: dict[str, list[Record]] = {table: [] for table in TITLES}
    for record in found:
        beside = published.same_roof(f"{record.data['name']}, {record.settings['model.name']}")
        for table in {record.experiment.partition("/")[0], beside} & own.keys():
            own[table].append(record)
    return own


def _doubts(found: Sequence[Record], outdated: bool) -> list[str]:
    shown, remarks = provenance.sift(found, outdated)
    return [*remarks, *provenance.disputes(shown)]


def _forms(name: str, title: str, blocks: dict[str, Block], remarks: list[str]) -> dict[str, str]:
    tex = [f"\n% {markup.plain(key)}\n{block.latex}" for key, block in blocks.items()]
    tex = [f"% {title}\n", *tex, "\n", *(f"% {remark}\n" for remark in remarks)]
    flat = [{"Block": key, **line} if key else line for key, block in blocks.items() for line in block.lines]
    flat = [line for line in flat if line.keys() == flat[0].keys()]  # the others stand in measured.csv
    return {
        f"{name}.md": "\n".join([f"# {title}\n", *markdown_blocks(blocks, remarks)]),
        f"{name}.csv": markup.csv_table(flat or [{"Block": "nothing is measured yet"}]),
        f"{name}.tex": "".join(tex),
    }


def markdown_blocks(blocks: dict[str, Block], remarks: Sequence[str]) -> list[str]:
    """Return one Markdown table per block under its title, and the remarks; an empty line goes between."""
    parts = [
        (f"**{markup.escape_markdown(key)}**\n\n" if key else "") + block.markdown
        for key, block in blocks.items()
    ]
    listed = "".join(f"- {markup.escape_markdown(remark)}\n" for remark in remarks)
    return [*(parts or ["Nothing is measured yet.\n"]), listed]


def update_readme(readme: Path, content: str) -> None:
    """Replace what stands between the two markers in ``readme``; nothing is written if it is the same.

    Raises:
        UserError: the file is not there, or does not have each marker once, in order.
    """
    if not readme.is_file():
        raise UserError(f"--readme {readme}: no such file")
    text = readme.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise UserError(f"--readme {readme}: must have the lines {BEGIN} and {END} once each, in this order")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    updated = f"{before}{BEGIN}\n{content}{END}{after}"
    if updated != text:
        store.write_text(readme, updated)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the tables, print the measured one; return the exit code (2: the user's mistake)."""
    parser = argparse.ArgumentParser("python -m reproduce.tables", description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of records/, tables/")
    parser.add_argument("--selection", choices=PROTOCOLS, default="last", help="which accuracy to print")
    parser.add_argument("--readme", type=Path, help=f"also renew the text between {BEGIN} and {END}")
    parser.add_argument("--outdated", action="store_true", help="also what older code measured, with a mark")
    options = parser.parse_args(arguments)
    try:
        render(options.results, options.selection, options.readme, options.outdated)
    except UserError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    return 0


def render(results: Path, selection: str, readme: Path | None = None, outdated: bool = False) -> None:
    """Write all tables below ``results``, and the block in ``readme``; print the measured table.

    Raises:
        UserError: a record cannot be read, or the readme lacks its markers.
    """
    found = index.read_all(results)
    files, block = documents(found, selection, outdated)
    for name, content in files.items():
        store.write_text(results / "tables" / name, content)
    if readme:
        update_readme(readme, "\n".join(block))
    print(_shown(block) if found else NOTHING.format(results / "records"))
    written = [results / "tables" / name for name in files] + ([readme] if readme else [])
    print("written:", *written, sep="\n  ")


def _shown(block: Sequence[str]) -> str:
    """Return the paragraphs, or the beginning of the tables and of the remarks where these are long."""
    *tables, remarks = block
    parts = ["\n".join(tables), remarks]
    lengths = [part.count("\n") for part in parts]
    cut = ["".join(part.splitlines(keepends=True)[:LONGEST]) for part in parts]
    more = [f"... and {n - LONGEST} more lines, in the files below\n" if n > LONGEST else "" for n in lengths]
    return "\n".join(part + rest for part, rest in zip(cut, more, strict=True))


if __name__ == "__main__":
    gc.disable()  # what is read is kept to the end: to look for garbage among it takes a third of the time
    sys.exit(main())
