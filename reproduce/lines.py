"""From claims and groups to the lines of a table, not yet in any markup."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from lpslim.experiment.statistics import Summary
from reproduce import provenance, published
from reproduce.claims import ACCURACIES, Claim, Measured, claim, departures
from reproduce.evidence import Evidence
from reproduce.groups import Group, grouped
from reproduce.labels import FAMILIES, family, labels
from reproduce.markup import Line, Missing, Value
from reproduce.published import TITLES, Row

HEADS = {"depth": "Depth", "task": "Task", "block": "Block", "method": "Method",
         "params_millions": "Params (M)"}  # fmt: skip
COLUMNS = {"top1": "Top-1 (%)", "top5": "Top-5 (%)", "score": "Score",
           "flops_drop": "FLOPs drop (%)", "params_drop": "Params drop (%)"}  # fmt: skip


def paper_lines(table: str, shown: Evidence, selection: str) -> list[Line]:
    """Return a published table line by line, what was measured beside what was published.

    Runs of a row's experiment with other settings follow it on lines of their own.

    Raises:
        UserError: no such table, or two results of one configuration and seed.
    """
    rows = published.read(table)
    lines: list[Line] = []
    for row in rows:
        columns = [column for column in COLUMNS if column in row.cells]
        claims = {column: claim(row, column, rows, shown, selection) for column in columns}
        lines += _row_lines(row, claims, shown.doubtful)
    return lines


def _row_lines(row: Row, claims: dict[str, Claim], doubtful: frozenset[str]) -> Iterator[Line]:
    main = claims[accuracy_column(row)]
    if not main.measured:
        reasons: dict[str, Value] = {column: Missing(each.empty) for column, each in claims.items()}
        yield _line(row, row.cells, reasons, main.command, doubtful)
    for i, measured in enumerate(main.measured):
        values = {column: _at(each.measured, i, each.empty) for column, each in claims.items()}
        yield _line(row, row.cells, values, measured.verdict, doubtful, measured)
    for i, measured in enumerate(main.departing):
        values = {column: _at(each.departing, i, each.empty) for column, each in claims.items()}
        comment = f"not this row's configuration: {departures(measured.group)}"
        yield _line(row, {}, values, comment, doubtful, measured)


def _at(measured: Sequence[Measured], index: int, reason: str) -> Value:
    return measured[index].value if measured else Missing(reason)


def accuracy_column(row: Row) -> str:
    """Return the name of the cell that holds the row's accuracy."""
    return next(column for column in ACCURACIES if column in row.cells)


def _line(
    row: Row,
    printed: dict[str, str],
    values: dict[str, Value],
    comment: str,
    doubtful: frozenset[str],
    measured: Measured | None = None,
) -> Line:
    line: Line = {head: row.place[key] for key, head in HEADS.items() if key in row.place}
    if "schedule" in row.place:
        epochs = row.place["finetune_epochs"]
        line["Fine-tune"] = epochs if epochs == "NA" else f"{row.place['schedule']} {epochs}"
    if not printed:
        line["Method"] = f"{row.method}, other settings"
    if measured and _is_outdated(row, measured):
        line["Method"] = f"{line['Method']} {provenance.OUTDATED}"
    for column, value in values.items():
        line[f"{COLUMNS[column]}, published"] = printed.get(column)
        line[f"{COLUMNS[column]}, measured"] = value
    line["Difference"] = measured.difference if measured else None
    line["Measured on"] = provenance.source(measured.group.first, doubtful) if measured else None
    line["Verdict, or what fills it"] = comment
    return line


def _is_outdated(row: Row, measured: Measured) -> bool:
    stages = ("baseline",) if row.is_dense else None
    return bool(provenance.outdated(measured.group.first, stages))


def measured_blocks(shown: Evidence, selection: str) -> dict[str, list[Line]]:
    """Return ``{"<data set>, <model>": lines}``, a line for each configuration that was measured.

    The metric follows in brackets where it is not accuracy.

    Raises:
        UserError: the records hold two results of one configuration and seed.
    """
    blocks: dict[str, list[Group]] = {}
    for group in grouped(shown.records):
        metric = "" if group.metric == "accuracy" else f" ({group.metric})"
        blocks.setdefault(", ".join(group.pair) + metric, []).append(group)
    return {title: _block(groups, selection, shown.doubtful) for title, groups in sorted(blocks.items())}


def _block(groups: Sequence[Group], selection: str, doubtful: frozenset[str]) -> list[Line]:
    """Return a line per group: what has the ADMM, then rivals, then controls, each by name."""
    named = [
        (FAMILIES.index(family(g.first.settings)), n, g) for n, g in zip(labels(groups), groups, strict=True)
    ]
    return [
        _group_line(name, group, selection, doubtful)
        for _, name, group in sorted(named, key=lambda each: each[:2])
    ]


def _group_line(name: str, group: Group, selection: str, doubtful: frozenset[str]) -> Line:
    cells: dict[str, Callable[[], Summary]] = {
        "Dense (%)": lambda: group.accuracy("baseline", selection),
        "Pruned, before fine-tuning (%)": lambda: group.accuracy("prune", selection),
        "Fine-tuned (%)": lambda: group.accuracy("finetune", selection),
        "Drop from dense (points)": lambda: group.drop(selection),
        "FLOPs drop (%)": lambda: group.cost("flops_drop"),
        "Params drop (%)": lambda: group.cost("params_drop"),
    }
    reasons = {**dict.fromkeys(cells, "diverged"), "Fine-tuned (%)": group.fate}
    return {
        "Method": name,
        **{head: cell() if group.records else Missing(reasons[head]) for head, cell in cells.items()},
        "Epochs: dense / sparsify / fine-tune": group.epochs(),
        "Measured on": provenance.source(group.first, doubtful),
    }


def counted(shown: Evidence, selection: str) -> list[str]:
    """Return per published table how many of its reproducible rows are measured."""
    sentences = []
    for table, title in TITLES.items():
        rows = published.read(table)
        ours = [row for row in rows if row.experiment]
        claims = [claim(row, accuracy_column(row), rows, shown, selection) for row in ours]
        done = sum(_is_measured(each) for each in claims)
        sentences.append(f"{title}: {done} of {len(ours)} rows measured as configured.")
    return sentences


def _is_measured(cell: Claim) -> bool:
    return any(
        isinstance(each.value, Summary) and not provenance.outdated(each.group.first)
        for each in cell.measured
    )
