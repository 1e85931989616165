"""Cells of tables: records grouped by everything but the seed."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from heapq import nlargest
from pathlib import Path
from typing import Any

from lpslim.base.errors import UserError
from lpslim.experiment.config import IGNORED_KEYS, Config, flat
from lpslim.experiment.records import RULE, VERSIONS, Record
from lpslim.experiment.statistics import Summary, summary

PROTOCOL = {
    "last": "after the last epoch",
    "val": "at the epoch that is best on the validation split",
    "paper": "at the epoch that is best on the test set, as published tables mostly do: biased upwards",
}
LAYOUT = ("trainer.channels_last", "trainer.compile")
NUMERICS = ("trainer.precision", *LAYOUT)  # the arithmetic of a run, by which comparable runs may differ
DEFAULTS = dict(flat(asdict(Config())))
FIVE_SEEDS = {f"bert_glue/{task}" for task in ("rte", "mrpc", "cola", "stsb")}  # small development sets


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed, in its order; no mean includes those that diverged."""

    runs: tuple[Record, ...]
    diverged: tuple[Record, ...] = ()

    @property
    def first(self) -> Record:
        """Record of the lowest seed, of the runs that ended if any did."""
        return (self.runs or self.diverged)[0]

    @property
    def n(self) -> str:
        """Number of runs in its means, and of those that diverged, such as ``3`` or ``2 (+1 diverged)``."""
        return f"{len(self.runs)}" + (f" (+{len(self.diverged)} diverged)" if self.diverged else "")

    @property
    def failure(self) -> str:
        """Places where runs diverged, such as ``diverged (finetune, epoch 3)``; empty if none did."""
        places = [f"{end.stage}, epoch {end.epoch}" for run in self.diverged if (end := run.diverged)]
        return f"diverged ({'; '.join(dict.fromkeys(places))})" if places else ""

    @property
    def arithmetic(self) -> dict[str, Any]:
        """Arithmetic of its runs: setting -> value."""
        config = dict(flat(self.first.config))
        return {key: config.get(key) for key in NUMERICS}

    def accuracy(self, stage: str, protocol: str) -> Summary:
        """Return the test accuracy after ``stage`` in percent; ValueError where all runs diverged."""
        return summary([run.accuracy[stage][protocol] for run in self.runs])

    def drop(self, protocol: str) -> Summary:
        """Return dense minus fine-tuned accuracy, run by run, in points; a gain is negative."""
        runs = [run.accuracy for run in self.runs]
        return summary([run["baseline"][protocol] - run["finetune"][protocol] for run in runs])

    def training(self) -> Summary:
        """Return the multiply-adds of all training after the dense network, in 10^12.

        A step takes three passes: forward, and backward to the inputs and to the weights. Sparsify trains
        the dense network, the fine-tune the pruned one.
        """
        stages = (("sparsify", "dense"), ("finetune", "pruned"))
        passes = [sum(r.epochs.get(s, 0) * getattr(r.cost, of).macs for s, of in stages) for r in self.runs]
        return summary([3e-12 * r.data.train * macs for r, macs in zip(self.runs, passes, strict=True)])

    def cost(self, key: str) -> Summary:
        """Return ``flops_drop`` or ``params_drop`` in percent."""
        return summary([getattr(run.cost, key) for run in self.runs])


def grouped(records: Iterable[Record], stage: str = "finetune") -> list[Group]:
    """Group records by the configuration of ``stage``; a result of it that several runs share counts once.

    Raises UserError where a configuration has two results of one seed.
    """
    groups: dict[str, dict[str, Record]] = {}
    for record in records:
        key, result = record.groups[stage], record.stages[stage]
        groups.setdefault(key, {}).setdefault(result, record)
    made = []
    for results in groups.values():
        runs = sorted(results.values(), key=lambda run: run.seed)
        if len({run.seed for run in runs}) < len(runs):
            same = ", ".join(f"{run.experiment}/{run.key}" for run in runs)
            raise UserError(f"{same}: two results of one configuration and seed; delete the wrong one")
        made.append(Group(tuple(r for r in runs if not r.diverged), tuple(r for r in runs if r.diverged)))
    return made


def by_pair(records: Iterable[Record]) -> dict[tuple[str, str], list[Group]]:
    """Return the groups of every data set and model, sorted by these."""
    pairs: dict[tuple[str, str], list[Group]] = {}
    for group in grouped(records):
        pairs.setdefault((group.first.data.name, group.first.config["model"]["name"]), []).append(group)
    return dict(sorted(pairs.items()))


def slug(pair: Sequence[str]) -> str:
    """Return data set and model as a part of a file name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "_".join(pair))


def best(groups: Sequence[Group], protocol: str, most: int) -> Sequence[Group]:
    """Return all groups, or of more than ``most`` those of the highest accuracy."""
    if len(groups) <= most:
        return groups
    ended = [group for group in groups if group.runs]
    return nlargest(most, ended, key=lambda group: group.accuracy("finetune", protocol).mean)


def decisive(record: Record) -> dict[str, Any]:
    """Return the settings that decide a result, but for the arithmetic."""
    config = {**DEFAULTS, **dict(flat(record.config))}  # a setting may be younger than a record
    return {key: value for key, value in config.items() if key not in IGNORED_KEYS and key not in NUMERICS}


def outdated(record: Record) -> str:
    """Return where today's code or counting rule differs from a record's; empty if nowhere."""
    old = sorted(record.versions.items() - VERSIONS.items())
    reasons = [f"{stage} by code version {version}, now {VERSIONS.get(stage)}" for stage, version in old]
    if record.cost.rule != RULE:
        reasons.append(f"counted by another rule: {record.cost.rule}")
    return "; ".join(reasons)


def to_show(records: Sequence[Record], protocol: str, keep: bool) -> tuple[list[Record], list[str]]:
    """Return the records with accuracies under a protocol, and remarks on those that are left out.

    The outdated are left out as well, or shown with a mark and a remark if ``keep``.
    """
    verb = "† Outdated" if keep else "Outdated and left out (--outdated shows it)"
    pairs = [(record, outdated(record)) for record in records]
    old = sorted({(record.experiment, reason) for record, reason in pairs if reason})
    remarks = [f"{verb}: {name} ({reason})" for name, reason in old]
    current = [record for record, reason in pairs if keep or not reason]
    shown = [record for record in current if all(protocol in by for by in record.accuracy.values())]
    lacking = sorted({record.experiment for record in current if record not in shown})
    remarks += [f"Left out: {name} (no validation split, so no protocol={protocol})" for name in lacking]
    return shown, remarks


def run_command(experiment: str) -> str:
    """Return the command that measures an experiment as its file says."""
    seeds = "0,1,2,3,4" if experiment in FIVE_SEEDS else "0,1,2"
    return f"python run.py -m experiment={experiment} seed={seeds}"


def how_to_run(table: str) -> str:
    """Return the command that measures a row of a published table, with a place for the row's name."""
    small = ", ".join(sorted(name.partition("/")[2] for name in FIVE_SEEDS if name.startswith(f"{table}/")))
    more = f" (`seed=0,1,2,3,4` for {small})" if small else ""
    return f"`{run_command(f'{table}/<row>')}`{more}"


def progress(rows: Path, records: Iterable[Record]) -> str:
    """Return how many experiment files of a folder have a record, which have none, and what diverged."""
    own = [record for record in records if record.experiment.rpartition("/")[0] == rows.name]
    names = sorted(path.stem for path in rows.glob("*.yaml"))
    ended = {record.experiment.rpartition("/")[2] for record in own if not record.diverged}
    missing = [name for name in names if name not in ended]
    lost = sorted(f"{record.experiment} seed={record.seed}" for record in own if record.diverged)
    parts = [f"{rows.name}: {len(names) - len(missing)} of {len(names)} rows have a record"]
    parts += [f"{word}: {', '.join(some)}" for word, some in (("none", missing), ("diverged", lost)) if some]
    return "; ".join(parts)
