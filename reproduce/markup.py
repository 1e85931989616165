"""Lines of a table as Markdown, CSV and LaTeX. Texts are not trusted: each form escapes its own marks."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

from lpslim.experiment.statistics import Summary

SPECIAL = re.compile(r"[\\`*\[\]|~_&<>]")  # to Markdown
LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%",
    "_": r"\_", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", "±": r"$\pm$",
})  # fmt: skip
FORMULA = ("=", "+", "-", "@")  # a spreadsheet runs a text cell that begins with one of these
LAST_COLUMN = "p{70mm}"


@dataclass(frozen=True)
class Missing:
    """A measured cell without a number, and the reason."""

    reason: str


Value = str | float | Summary | Missing | None
Line = dict[str, Value]


def plain(text: str) -> str:
    """Return ``text`` on one line: every control character and run of white space is one space."""
    if not text.isprintable():
        text = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(text.split())


def words(value: Value) -> str:
    """Return a value as a reader sees it: a number is a difference and shows its sign."""
    if value is None:
        return ""
    if isinstance(value, Summary):
        return value.text()
    if isinstance(value, Missing):
        return plain(value.reason)
    return plain(value) if isinstance(value, str) else f"{round(value, 2) + 0.0:+.2f}"  # no -0.00


def escape_markdown(text: str) -> str:
    """Return ``text`` so that Markdown shows it literally; an underscore inside a word needs no escape."""
    text = plain(text)
    if not SPECIAL.search(text):
        return text
    escaped = re.sub(r"([\\`*\[\]|~])", r"\\\1", html.escape(text, quote=False))
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", escaped)


def escape_latex(text: str) -> str:
    """Return ``text`` so that LaTeX prints it literally."""
    return plain(text).translate(LATEX)


def escape_csv(text: str) -> str:
    """Return ``text`` so that no spreadsheet takes it for a formula; numbers stay as they are."""
    text = plain(text)
    is_number = re.fullmatch(r"[+-]?\d+(\.\d+)?", text)
    return f"'{text}" if text.startswith(FORMULA) and not is_number else text


def markdown(lines: Sequence[Line]) -> str:
    """Return a Markdown table, its columns aligned for the terminal too.

    Raises:
        ValueError: there is no line.
    """
    heads = _heads(lines)
    rows = [heads, *([words(line[head]) for head in heads] for line in lines)]
    cells = [[escape_markdown(cell) for cell in row] for row in rows]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    widths[-1] = 3  # the last column holds sentences
    cells.insert(1, ["-" * width for width in widths])
    padded = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in cells)
    return "".join(f"| {' | '.join(row).rstrip()} |\n" for row in padded)


def latex(lines: Sequence[Line]) -> str:
    """Return a LaTeX ``tabular`` that needs no package.

    Raises:
        ValueError: there is no line.
    """
    heads = _heads(lines)
    rows = [heads, *([words(line[head]) for head in heads] for line in lines)]
    cells = [" & ".join(escape_latex(cell) for cell in row) + r" \\" for row in rows]
    columns = "l" * (len(heads) - 1) + LAST_COLUMN
    body = "\n".join([r"\hline", cells[0], r"\hline", *cells[1:], r"\hline"])
    return f"\\begin{{tabular}}{{{columns}}}\n{body}\n\\end{{tabular}}\n"


def csv_table(lines: Sequence[Line]) -> str:
    """Return CSV with unrounded numbers; a measured column becomes three: mean, ``sd`` and ``n``.

    Where runs diverged, ``diverged`` follows: how many.

    Raises:
        ValueError: there is no line.
    """
    heads = _heads(lines)
    measured = {h for h in heads for line in lines if isinstance(line[h], Summary | Missing)}
    partly = {h for h in measured if any(isinstance(v := line[h], Summary) and v.diverged for line in lines)}
    parts = {h: ["", " sd", " n", *[" diverged"] * (h in partly)] if h in measured else [""] for h in heads}
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([h + part for h in heads for part in parts[h]])
    for line in lines:
        writer.writerow([cell for h in heads for cell in _csv_cells(line[h], len(parts[h]))])
    return stream.getvalue()


def _csv_cells(value: Value, width: int) -> list[str]:
    if isinstance(value, Summary):
        sd = "" if value.sd is None else repr(value.sd)
        return [repr(value.mean), sd, str(value.n), str(value.diverged)][:width]
    text = repr(value) if isinstance(value, float) else escape_csv(words(value))
    return [text, *[""] * (width - 1)]


def _heads(lines: Sequence[Line]) -> list[str]:
    if not lines:
        raise ValueError("lines: a table needs one at least")
    return list(lines[0])
