"""Published rows with what was measured for them, the paper's method with others, and drops by task."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from lpslim.base.files import canonical
from lpslim.experiment.config import IGNORED_KEYS, Config, flat
from lpslim.experiment.records import Record, Samples
from lpslim.experiment.statistics import Summary, paired_difference, summary, verdict
from reproduce.aggregate import NUMERICS, Group, best, by_pair, grouped, named, numerics, outdated, setting
from reproduce.markup import Line
from reproduce.published import OURS, TITLES, Row, dense_of, read

# Points around a published figure that count as within (docs/protocol.md); GLUE's development sets are small
BANDS = {**dict.fromkeys(TITLES, 0.3), "bert_glue": 1.0}
AVERAGE = "average: needs all tasks"
MOST = 20  # lines of other settings below one row
COPY = "lossless copy"  # this and the next: how sources of CIFAR-10 begin, as lpslim.data has them
LOSSLESS = ("torchvision batches", COPY)
COMPLETE = {  # samples: train with val, test
    "cifar10": (50_000, 10_000), "imagenet": (1_281_167, 50_000), "cola": (8551, 1043),
    "sst2": (67349, 872), "mrpc": (3668, 408), "stsb": (5749, 1500), "rte": (2490, 277),
    "qnli": (104743, 5463), "qqp": (363846, 40430), "mnli": (392702, 9815),
}  # fmt: skip

KNOBS = ("p", "M", "rho", "lamb", "granularity", "retrain", "criterion")  # with the regulariser: a method
DEFAULTS = dict(flat(asdict(Config())))
# what may differ between comparable runs, beside their arithmetic: the method
METHOD = {*KNOBS, "regularizer", "scratch", "equal_epochs", "ratio", "seed"}

Runs = Mapping[str, Sequence[Record]]  # experiment -> its records
TABLE, FIGURE, PUBLISHED = "bert_glue", "drops_glue", "BERT-base, published"
Drops = dict[str, dict[str, Summary]]  # series -> task, in the paper's order -> dense minus pruned score


@dataclass(frozen=True)
class Claim:
    """A published row, and one configuration that was measured for it, if there is any.

    status: verdict, or the reason why there is none.
    measured: column of the row -> value in its unit; empty where every run diverged.
    difference: measured minus published accuracy in points (or of the changes from the dense networks).
    """

    row: Row
    status: str
    group: Group | None = None
    measured: Mapping[str, Summary] = field(default_factory=dict)
    difference: float | None = None


def every_claim(shown: Sequence[Record], protocol: str) -> dict[str, list[list[Claim]]]:
    """Return, table by table, the claims of each published row."""
    runs: dict[str, list[Record]] = {}
    for record in shown:
        runs.setdefault(record.experiment, []).append(record)
    rows = {table: read(table) for table in TITLES}
    return {table: [claims(row, own, runs, protocol) for row in own] for table, own in rows.items()}


def claims(row: Row, rows: Sequence[Row], runs: Runs, protocol: str) -> list[Claim]:
    """Return the claims of one of ``rows``: one per configuration as in its experiment file, or an empty one.

    The experiment with other settings follows, never judged: the best MOST configurations.
    """
    if row.is_dense:
        experiments = [other.experiment for other in rows if dense_of(other, rows) is row]
        ended = [run for name in experiments for run in runs.get(name, ()) if not run.diverged]
        dense = grouped((run for run in ended if not run.differs and not outdated(run)), "baseline")
        nothing = "not run: measured with its rows" if any(experiments) else AVERAGE
        return [_judged(row, rows, group, dense, protocol) for group in dense] or [Claim(row, nothing)]
    if not row.experiment:
        return [Claim(row, AVERAGE if row.method == OURS else "published only")]
    every = runs.get(row.experiment, ())
    configured = grouped(run for run in every if not run.differs)
    judged = [_judged(row, rows, group, configured, protocol) for group in configured]
    for group in best(grouped(run for run in every if run.differs), protocol, MOST):
        changed = ", ".join(setting(key, ours) for key, (_, ours) in sorted(group.first.differs.items()))
        how = f"short: {changed}, not judged" if is_short(group.first) else f"other settings: {changed}"
        status = how if group.runs else f"{how}; {group.failure}"
        judged.append(Claim(row, status, group, _measured(row, group, protocol)))
    return judged if configured else [Claim(row, "not run as configured" if judged else "not run"), *judged]


def _judged(row: Row, rows: Sequence[Row], group: Group, configured: Sequence[Group], protocol: str) -> Claim:
    """Return the claim of a group with the row's own settings; ``configured`` are all such groups."""
    if not group.runs:
        return Claim(row, group.failure, group)
    measured = _measured(row, group, protocol)
    value, published, how = measured[row.column].mean, row.accuracy, ""
    reference = None if row.is_dense else dense_of(row, rows)
    original = is_original(group.first.data)
    if not original and published is not None and reference and reference.accuracy is not None:
        value, published, how = -group.drop(protocol).mean, published - reference.accuracy, "drops compared: "
    current = [g for g in configured if not outdated(g.first) and g.first.data == group.first.data]
    arithmetic = [numerics(g.first) for g in current]
    twice = any(arithmetic.count(each) > 1 for each in arithmetic)
    difference = None
    if reason := outdated(group.first):
        status = f"† not comparable: {reason}"
    elif (
        twice or len({_settled(g.first, row.is_dense) for g in current}) > 1
    ):  # an older file's are still there
        status = f"not comparable: {len(current)} configurations under this name"
    elif published is None:
        status = "no published figure"
    elif not original and not how:
        status = "not comparable: other data source"
    else:
        difference = value - published
        own = numerics(group.first).items()
        told = [setting(key, value) for key, value in own if any(a[key] != value for a in arithmetic)]
        status = (f"{', '.join(told)}: " if told else "") + how + verdict(value, published, BANDS[row.table])
    return Claim(row, status, group, measured, difference)


def _settled(record: Record, dense: bool) -> str:
    """Return all that decides a result but seed and arithmetic; ``dense``: that of the dense network."""
    parts = ("model", "dataset", "baseline") if dense else tuple(asdict(Config()))
    return canonical({k: v for k, v in _settings(record).items() if k != "seed" and k.split(".")[0] in parts})


def _settings(record: Record) -> dict[str, Any]:
    """Return the settings that decide a result, but for the arithmetic."""
    config = {**DEFAULTS, **dict(flat(record.config))}  # a setting may be younger than a record
    return {key: value for key, value in config.items() if key not in IGNORED_KEYS and key not in NUMERICS}


def _measured(row: Row, group: Group, protocol: str) -> dict[str, Summary]:
    if not group.runs:
        return {}
    if row.is_dense:
        return {row.column: group.accuracy("baseline", protocol)}
    costs = {column: group.cost(column) for column in row.cells if column.endswith("_drop")}
    return {row.column: group.accuracy("finetune", protocol), **costs}


def is_short(record: Record) -> bool:
    """Return whether a run is as its experiment file says, but for fewer epochs."""
    return record.differs.keys() == {"epoch_scale"} and record.config["epoch_scale"] < 1


def is_original(data: Samples) -> bool:
    """Return whether a record's data are those of the published tables, as far as it can tell.

    All samples must be there, and CIFAR-10 must come from its own batches, or from a lossless copy.
    """
    complete = (data.train + data.val, data.test) == COMPLETE.get(data.name)
    return complete and (data.name != "cifar10" or data.source.startswith(LOSSLESS))


def footnote(data: Samples) -> str:
    """Return how data that count as the paper's differ from it; empty if they do not, or do not count."""
    if is_original(data) and data.source.startswith(COPY):
        return f"{data.name}: {data.source} by JPEG copies; counts as the paper's data"
    return ""


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
        config = _settings(group.first)
        same = {k: v for k, v in config.items() if k.split(".")[0] not in METHOD}
        sparsified = config["regularizer.name"] != "none" and config["retrain"] == "finetune"
        if sparsified or config["equal_epochs"] or config["retrain"].startswith("scratch"):
            same["finetune.epochs"] += config["regularizer.train.epochs"]
        if config["target_flops"] is None and config["target_params"] is None:
            same["ratio"] = config["ratio"]
        gathered.setdefault(canonical([same, group.first.data.fingerprint]), []).append(group)
    return list(gathered.values())


def pairs(groups: Sequence[Group], protocol: str) -> list[Pair]:
    """Return the paper's method, with its constants, beside every other one that is comparable.

    It is the one of the other's arithmetic, or else that of most seeds.
    """
    made = []
    for together in comparable(groups):
        ours = [group for group in together if group.runs and is_ours(group.first)]
        ours.sort(key=lambda group: -len(group.runs))
        for name, other in named(together):
            alike = [each for each in ours if numerics(each.first) == numerics(other.first)]
            if ours and other is not ours[0]:
                own = alike[0] if alike and other not in ours else ours[0]
                made.append(_pair(own, name, other, protocol))
    return made


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
