"""Tables as Markdown, LaTeX and CSV, by pandas. Texts of a record are made plain and escaped."""

import html
import re
from collections.abc import Sequence

import pandas as pd

from lpslim.experiment.statistics import ROUNDING, Summary
from reproduce.names import plain

Value = str | float | Summary | None  # None: there is nothing to show
Line = dict[str, Value]
ALWAYS = ("Method", "Fine-tuned (%)", "Status", "Verdict")  # they stay even if all their cells are equal
ONCE = ("n", "Data")  # said once if all cells that are not empty are equal


def words(value: Value) -> str:
    """Return a value as a reader sees it: a number is a difference and shows its sign."""
    if isinstance(value, Summary):
        return value.text()
    if isinstance(value, float):
        if abs(value) < ROUNDING:
            return "+0.00"
        return f"{value:+.2f}" if round(value, 2) else f"{value:+.1g}"  # -0.004 is no zero
    return "-" if value is None else plain(value)


def texts(lines: Sequence[Line]) -> pd.DataFrame:
    """Return the lines of a table as texts."""
    return pd.DataFrame([{head: words(line[head]) for head in line} for line in lines]).fillna("-")


def condensed(lines: Sequence[Line]) -> tuple[pd.DataFrame, str]:
    """Return a table's texts without the columns that are equal in all lines, and these as a remark."""
    table, equal = texts(lines), {}
    for head in table if len(lines) > 1 else ():
        cells = list(dict.fromkeys(table[head]))
        filled = [cell for cell in cells if cell != "-"]
        if head not in ALWAYS and len(filled if head in ONCE else cells) <= 1:
            equal[head] = "".join(filled) + (" where measured" if len(cells) > len(filled) > 0 else "")
    said = [f"{head}: {cell}" for head, cell in equal.items() if cell]
    return table.drop(columns=list(equal)), f"In all rows: {'; '.join(said)}." if said else ""


def section(lines: Sequence[Line]) -> str:
    """Return a Markdown table, and below it what is equal in all its lines."""
    if not lines:
        return "Nothing has been measured for it yet."
    table, remark = condensed(lines)
    return markdown(table) + (f"\n\n{escaped(remark)}" if remark else "")


def escaped(text: str) -> str:
    """Return ``text`` so that Markdown shows it literally; an underscore inside a word needs no escape."""
    text = re.sub(r"([\\`*\[\]|~])", r"\\\1", html.escape(plain(text), quote=False))
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)


def guarded(text: str) -> str:
    """Return ``text`` so that no spreadsheet takes it for a formula; numbers stay as they are."""
    return re.sub(r"^(?=[=@+-])(?![+-]\d+(\.\d+)?$)", "'", plain(text))


def markdown(table: pd.DataFrame) -> str:
    """Return a Markdown table."""
    return str(table.map(escaped).to_markdown(index=False, disable_numparse=True))


def latex(lines: Sequence[Line]) -> str:
    """Return a LaTeX table for the package booktabs, with what is equal in all lines as a comment."""
    table, remark = condensed(lines)
    return table.to_latex(index=False, escape=True) + (f"% {remark}\n" if remark else "")


def csv(lines: Sequence[Line]) -> str:
    """Return CSV with unrounded numbers, and the standard deviation beside a measured mean."""
    spread = {head for line in lines for head, value in line.items() if isinstance(value, Summary)}
    rows = [
        dict(cell for head in line for cell in _cells(head, line[head], head in spread)) for line in lines
    ]
    return pd.DataFrame(rows, dtype=object).to_csv(index=False)


def _cells(head: str, value: Value, spread: bool) -> list[tuple[str, str | float | None]]:
    mean, sd = (value.mean, value.sd) if isinstance(value, Summary) else (value, None)
    cells = [(head, guarded(mean) if isinstance(mean, str) else mean)]
    return [*cells, (f"{head} sd", sd)] if spread else cells


def heading(network: tuple[str, str], metric: str, shown: int = 0, of: int = 0) -> str:
    """Return the title of a data set's and a network's results, of which so many are shown."""
    title = f"{network[1]} on {network[0]}" + (f" ({metric})" if metric != "accuracy" else "")
    return title + (f", best {shown} of {of}" if shown < of else "")
