"""Claims of the paper: its published rows, what was measured for them, and whether that bears them out."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from lpslim.base.files import canonical
from lpslim.experiment.config import Config
from lpslim.experiment.records import Record, Samples
from lpslim.experiment.statistics import Summary, verdict
from reproduce.aggregate import Group, best, decisive, grouped, outdated
from reproduce.names import setting
from reproduce.published import OURS, TITLES, Row, dense_of, read

# Points around a published figure that count as within (docs/protocol.md); GLUE's development sets are small
BANDS = {**dict.fromkeys(TITLES, 0.3), "bert_glue": 1.0}
AVERAGE = "average: needs all tasks"
OTHER_SETTINGS = 20  # lines of other settings below one row
COPY = "lossless copy"  # this and the next: how sources of CIFAR-10 begin, as lpslim.data has them
LOSSLESS = ("torchvision batches", COPY)
COMPLETE = {  # samples: train with val, test
    "cifar10": (50_000, 10_000), "imagenet": (1_281_167, 50_000), "cola": (8551, 1043),
    "sst2": (67349, 872), "mrpc": (3668, 408), "stsb": (5749, 1500), "rte": (2490, 277),
    "qnli": (104743, 5463), "qqp": (363846, 40430), "mnli": (392702, 9815),
}  # fmt: skip

Runs = Mapping[str, Sequence[Record]]  # experiment -> its records


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

    The experiment with other settings follows, never judged: the best OTHER_SETTINGS configurations.
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
    for group in best(grouped(run for run in every if run.differs), protocol, OTHER_SETTINGS):
        changed = ", ".join(setting(key, ours) for key, (_, ours) in sorted(group.first.differs.items()))
        how = f"{'short' if is_short(group.first) else 'other settings'}: {changed}"
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
    arithmetic = [g.arithmetic for g in current]
    # the experiment file, or a plug-in, has changed, and older runs are still there
    mixed = len({_settled(g.first, row.is_dense) for g in current}) > 1
    mixed |= any(arithmetic.count(each) > 1 for each in arithmetic)
    difference = None
    if reason := outdated(group.first):
        status = f"† not comparable: {reason}"
    elif mixed:
        status = f"not comparable: {len(current)} configurations under this name"
    elif published is None:
        status = "no published figure"
    elif not original and not how:
        status = "not comparable: other data source"
    else:
        difference = value - published
        own = group.arithmetic.items()
        told = [setting(key, value) for key, value in own if any(a[key] != value for a in arithmetic)]
        status = (f"{', '.join(told)}: " if told else "") + how + verdict(value, published, BANDS[row.table])
    return Claim(row, status, group, measured, difference)


def _settled(record: Record, dense: bool) -> str:
    """Return all that decides a result but seed and arithmetic; ``dense``: that of the dense network."""
    parts = ("model", "dataset", "baseline") if dense else tuple(asdict(Config()))
    return canonical({k: v for k, v in decisive(record).items() if k != "seed" and k.split(".")[0] in parts})


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
