"""A cell of a published table and the records: published, measured, or empty with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lpslim.experiment.records import OPEN, PLACES
from lpslim.experiment.statistics import Summary, verdict
from reproduce.evidence import Evidence
from reproduce.groups import Group
from reproduce.labels import setting
from reproduce.markup import Missing
from reproduce.provenance import EXPERIMENTS, OUTDATED, outdated
from reproduce.published import OURS, Row, dense_of, number

# Points: smaller differences between methods are noise (docs/protocol.md); GLUE's development sets are small
BAND, BANDS = 0.3, {"bert_glue": 1.0}
ACCURACIES = ("top1", "score")
COSTS = ("flops_drop", "params_drop")
SEEDS = dict.fromkeys((f"bert_glue/{task}" for task in ("rte", "mrpc", "cola", "stsb")), "0,1,2,3,4")
GLUE_SIZES = {"cola": (8551, 1043), "sst2": (67349, 872), "mrpc": (3668, 408), "stsb": (5749, 1500),
              "rte": (2490, 277), "qnli": (104743, 5463), "qqp": (363846, 40430),
              "mnli": (392702, 9815)}  # official training and development sets  # fmt: skip
HOW = PLACES.union(OPEN)  # not worth a word in a table


@dataclass(frozen=True)
class Measured:
    """What one configuration gave for a cell, in the cell's unit.

    value: missing where every run diverged.
    difference: measured minus published, in points (of the accuracies, or of their changes from the
        dense network); None where the two must not be compared.
    verdict: in words, and empty for a cell that is no accuracy.
    """

    group: Group
    value: Summary | Missing
    difference: float | None = None
    verdict: str = ""


@dataclass(frozen=True)
class Claim:
    """One cell: what the paper prints, and either what was measured, or why nothing was.

    measured: the row's own configuration, one entry per data source (and version of the code).
    departing: runs of this experiment with other settings, which never count as the row.
    empty: the reason, and ``command`` what fills the cell (empty where nothing can).
    """

    published: str
    measured: tuple[Measured, ...] = ()
    departing: tuple[Measured, ...] = ()
    empty: str = ""
    command: str = ""


def claim(row: Row, column: str, rows: Sequence[Row], shown: Evidence, selection: str) -> Claim:
    """Return the claim of one cell.

    Args:
        row, column: the cell. rows: all of its table.
        shown: all records that are. selection: the protocol, see lpslim.training.evaluation.summarise.

    Raises:
        UserError: the records hold two results of one configuration and seed.
    """
    published = row.cells[column]
    if column not in (*ACCURACIES, *COSTS):
        return Claim(published, empty="not recorded")
    if not row.is_dense and row.method != OURS:
        return Claim(published, empty="another method")
    if row.is_average:
        return Claim(published, empty="needs every task")
    if row.is_dense:
        return _dense_claim(row, column, rows, shown, selection)
    as_filed, others = (shown.groups(row.experiment, own) for own in (True, False))
    departing = tuple(Measured(group, _value(column, group, selection)) for group in others)
    if not as_filed:
        return Claim(published, (), departing, *_unfilled(row))
    dense = dense_of(row, rows)
    incomparable = _incomparable(as_filed, shown.doubtful)
    measured = tuple(
        _measured(row, column, group, selection, dense, why)
        for group, why in zip(as_filed, incomparable, strict=True)
    )
    return Claim(published, measured, departing)


def _unfilled(row: Row) -> tuple[str, str]:
    if not (EXPERIMENTS / f"{row.experiment}.yaml").exists():
        return "no experiment file yet", ""
    seeds = SEEDS.get(row.experiment, "0,1,2")
    return (
        "not run",
        f"python run.py -m experiment={row.experiment} seed={seeds}",
    )


def _dense_claim(row: Row, column: str, rows: Sequence[Row], shown: Evidence, selection: str) -> Claim:
    """The dense network of a table: measured at the start of every run of its rows."""
    published = row.cells[column]
    if column in COSTS:
        return Claim(published, empty="by definition")
    pruned = {each.experiment for each in rows if each.experiment and dense_of(each, rows) is row}
    found = []
    for group in shown.dense(pruned):
        value = group.accuracy("baseline", selection)
        why = _doubt(group, shown.doubtful, ("baseline",))
        compared = (None, why) if why else _compare(number(published), value.mean, group, "")
        found.append(Measured(group, value, *compared))
    return Claim(published, tuple(found), empty="" if found else "measured with any of its rows")


def _value(column: str, group: Group, selection: str) -> Summary | Missing:
    if not group.records:
        return Missing("diverged" if column in COSTS else group.fate)
    return group.cost(column) if column in COSTS else group.accuracy("finetune", selection)


def _measured(
    row: Row, column: str, group: Group, selection: str, dense: Row | None, incomparable: str
) -> Measured:
    value, published = _value(column, group, selection), number(row.cells[column])
    if isinstance(value, Missing):
        return Measured(group, value, None, "no run ended")
    if column in COSTS:
        if published is None or outdated(group.first):
            return Measured(group, value)
        return Measured(group, value, value.mean - published)
    if incomparable:
        return Measured(group, value, None, incomparable)
    reference = number(dense.cells[column]) if dense else None
    if is_original(group.first.data) or published is None or reference is None:
        return Measured(group, value, *_compare(published, value.mean, group, ""))
    change = -group.drop(selection).mean
    return Measured(group, value, *_compare(published - reference, change, group, "drops compared: "))


def _incomparable(as_filed: Sequence[Group], doubtful: frozenset[str]) -> list[str]:
    """Return per group of a row why it cannot be compared with what is published; empty where it can."""
    current = [_basis(each) for each in as_filed if not outdated(each.first)]
    reasons = []
    for group in as_filed:
        why, rivals = _doubt(group, doubtful), current.count(_basis(group))
        if not why and rivals > 1:  # the experiment file has changed, and older runs are still there
            why = f"not comparable: {rivals} configurations under this name"
        reasons.append(why)
    return reasons


def _doubt(group: Group, doubtful: frozenset[str], stages: Sequence[str] | None = None) -> str:
    if why := outdated(group.first, stages):
        return f"{OUTDATED} not comparable: {why}"
    if group.first.data["fingerprint"] in doubtful:
        return "not comparable: different data under one name"
    return ""


def _compare(published: float | None, measured: float, group: Group, how: str) -> tuple[float | None, str]:
    if published is None:
        return None, "no published figure"
    if not how and not is_original(group.first.data):
        return None, "not comparable: other data source"
    return measured - published, how + verdict(measured, published, BANDS.get(group.table, BAND))


def _basis(group: Group) -> tuple[str, str]:
    return group.first.data["fingerprint"], group.first.cost["rule"]


def is_original(data: dict[str, Any]) -> bool:
    """Return whether a record's data are those of the published tables, as far as it can tell.

    CIFAR-10 must come from its own lossless batches; ImageNet and GLUE must have all their samples.
    """
    if data["name"] == "cifar10":
        return bool(data["source"] == "torchvision batches")
    sizes = (data["train"] + data["val"], data["test"])
    complete = {"imagenet": (1_281_167, 50_000), **GLUE_SIZES}
    return sizes == complete.get(data["name"])


def departures(group: Group) -> str:
    """Return in which settings the runs depart from their experiment file: ``epoch_scale=0.05, ...``."""
    changed = {key: ours for key, (_, ours) in sorted(group.first.differs.items())}
    worth = {key: value for key, value in changed.items() if key not in HOW} or changed
    return ", ".join(setting(key, value) for key, value in worth.items())
