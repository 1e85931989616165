"""Comparisons: the paper's method beside others under the same conditions, and drops by task."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from lpslim.base.files import canonical
from lpslim.experiment.config import flat
from lpslim.experiment.records import Record
from lpslim.experiment.statistics import Summary, paired_difference, summary
from reproduce.aggregate import DEFAULTS, Group, by_pair, decisive
from reproduce.markup import Line
from reproduce.names import named
from reproduce.published import OURS, dense_of, read

KNOBS = ("p", "M", "rho", "lamb", "granularity", "retrain", "criterion")  # with the regulariser: a method
# what may differ between comparable runs, beside their arithmetic: the method
METHOD_KEYS = {*KNOBS, "regularizer", "scratch", "equal_epochs", "ratio", "seed"}
TABLE, FIGURE, PUBLISHED = "bert_glue", "drops_glue", "BERT-base, published"
Drops = dict[str, dict[str, Summary]]  # series -> task, in the paper's order -> dense minus pruned score


class Pair(NamedTuple):
    """The paper's method and another, on one dense network and data set, with one budget and fine-tune.

    difference: its accuracy minus the other's in points, paired by seed; None if they share no seed.
    """

    ours: Group
    theirs: Group
    name: str
    difference: Summary | None
    verdict: str


def comparable(groups: Sequence[Group]) -> list[list[Group]]:
    """Gather groups that differ in nothing but the method: same network, data set, target and epochs in all.

    How a method splits its epochs between sparsify and fine-tune may differ. Controls trained
    from scratch are compared whatever their epochs.
    """
    gathered: dict[str, list[Group]] = {}
    for group in groups:
        config = decisive(group.first)
        same = {k: v for k, v in config.items() if k.split(".")[0] not in METHOD_KEYS}
        sparsified = config["regularizer.name"] != "none" and config["retrain"] == "finetune"
        same["finetune.epochs"] = round(config["finetune.epochs"] * config["epoch_scale"])
        if sparsified or config["equal_epochs"] or config["retrain"].startswith("scratch"):
            same["finetune.epochs"] += config["regularizer.train.epochs"]
        if config["target_flops"] is None and config["target_params"] is None:
            same["ratio"] = config["ratio"]
        gathered.setdefault(canonical([same, group.first.data.fingerprint]), []).append(group)
    return list(gathered.values())


def pairs(groups: Sequence[Group], protocol: str) -> list[Pair]:
    """Return the paper's method, with its constants, beside every other one that is comparable.

    Of several it is the one whose arithmetic is most like the other's, and then that of most seeds.
    """
    made = []
    for together in comparable(groups):
        ours = [group for group in together if group.runs and is_ours(group.first)]
        ours.sort(key=lambda group: -len(group.runs))
        for name, other in named(together):
            if ours and other is not ours[0]:
                own = ours[0] if other in ours else max(ours, key=partial(_alike, other))
                made.append(_pair(own, name, other, protocol))
    return made


def _alike(one: Group, other: Group) -> list[bool]:
    """Return which parts of the arithmetic are the same, the precision first."""
    theirs = other.arithmetic
    return [value == theirs[key] for key, value in one.arithmetic.items()]


def is_ours(record: Record) -> bool:
    """Return whether a record's method is the paper's with its own constants."""
    fixed = {k: v for k, v in flat(record.config) if k.split(".")[0] in (*KNOBS, "regularizer")}
    return all(value == DEFAULTS.get(k) for k, value in fixed.items() if "regularizer.train" not in k)


def _pair(ours: Group, name: str, other: Group, protocol: str) -> Pair:
    first, second = ({r.seed: r.accuracy["finetune"][protocol] for r in g.runs} for g in (ours, other))
    if not first.keys() & second.keys():
        return Pair(ours, other, name, None, other.failure or "no seed in common")
    found = paired_difference(first, second)
    word = f"Lp {'better' if found.mean > 0 else 'worse'}"
    if found.half is None or abs(found.mean) <= found.half:  # the sign of the mean may be chance
        word = "one seed" if found.half is None else "inside the noise"
    return Pair(ours, other, name, found, word)


def drops(shown: Sequence[Record], protocol: str) -> Drops:
    """Return the published drops, and those of every encoder that the paper's method has pruned.

    Each is from the own dense score, which alone compares between networks. With it come the other methods
    of the same network, budget and epochs: where there are several budgets, of the one with most methods, and
    then of the whole network. Empty if nothing was measured.
    """
    rows = read(TABLE)
    own = {row.place["task"]: row for row in rows if row.method == OURS and row.experiment}
    found: Drops = {}
    for (data, model), groups in by_pair(shown).items():
        task = next((task for task in own if task.partition(" ")[0] == data), None)
        ended = [group for group in groups if task and group.runs]
        with_ours = [each for each in comparable(ended) if any(is_ours(group.first) for group in each)]
        with_ours.sort(key=lambda each: len(each[0].first.config["protected"]))
        for name, group in named(max(with_ours, key=len, default=[])):
            found.setdefault(f"{model}, {name}", {})[str(task)] = group.drop(protocol)
    if not found:
        return {}
    pairs = ((task, row.accuracy, dense_of(row, rows)) for task, row in own.items())
    ours = {task: summary([dense.accuracy - after]) for task, after, dense in pairs
            if after is not None and dense and dense.accuracy is not None}  # fmt: skip
    ordered = {name: {task: by[task] for task in ours if task in by} for name, by in sorted(found.items())}
    return {PUBLISHED: ours, **ordered}


def drop_lines(found: Drops) -> list[Line]:
    """Return a line per task, with a column per series."""
    tasks = found.get(PUBLISHED, ())
    return [{"Task": task, **{name: by.get(task) for name, by in found.items()}} for task in tasks]
