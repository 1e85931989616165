"""Runs grouped over seeds: what was measured more than once counts as one configuration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lpslim.base.errors import UserError
from lpslim.base.hashing import canonical
from lpslim.experiment.records import PLACES, Record
from lpslim.experiment.statistics import Summary, summary
from reproduce.provenance import versions

# What the networks before pruning depend on, by the first part of a setting's key
DENSE_NEEDS = ("model", "dataset", "baseline", "trainer", "epoch_scale")
METRICS = {"accuracy": "accuracy", "f1": "F1", "matthews": "Matthews correlation",
           "spearman": "Spearman correlation"}  # fmt: skip
ADMM_NEEDS = (*DENSE_NEEDS, "p", "M", "rho", "lamb", "regularizer")


@dataclass(frozen=True)
class Group:
    """Records that differ in nothing but the seed, in the order of the seeds.

    records: of runs that ended. diverged: of those that did not, and that no mean includes. One of the
    two may be empty.
    """

    records: tuple[Record, ...]
    diverged: tuple[Record, ...] = ()

    @property
    def first(self) -> Record:
        """The record of the lowest seed that ended, if any did."""
        return (*self.records, *self.diverged)[0]

    @property
    def fate(self) -> str:
        """Where its runs diverged, such as ``diverged (finetune, epoch 3)``; empty if none did."""
        places = ("{stage}, epoch {epoch}".format(**each.diverged) for each in self.diverged)
        return f"diverged ({'; '.join(dict.fromkeys(places))})" if self.diverged else ""

    @property
    def pair(self) -> tuple[str, str]:
        """Data set and model."""
        return str(self.first.data["name"]), str(self.first.settings["model.name"])

    @property
    def table(self) -> str:
        """The first part of the experiment's name: the published table, for a row of the paper."""
        return self.first.experiment.partition("/")[0]

    @property
    def metric(self) -> str:
        """How the data set is marked, such as ``accuracy`` or ``F1``."""
        return METRICS[self.first.data.get("metric", "accuracy")]

    def accuracy(self, stage: str, selection: str) -> Summary:
        """Return the test accuracy after ``stage`` in percent (the stage prune has ``last`` alone).

        That of the last stage says how many runs diverged.

        Raises:
            ValueError: all runs diverged; so do ``drop`` and ``cost``.
        """
        protocol = "last" if stage == "prune" else selection
        found = summary([each.accuracy[stage][protocol] for each in self.records])
        return replace(found, diverged=len(self.diverged)) if stage == "finetune" else found

    def drop(self, selection: str) -> Summary:
        """Return dense minus fine-tuned accuracy, run by run, in points; a gain is negative."""
        runs = [each.accuracy for each in self.records]
        return summary([run["baseline"][selection] - run["finetune"][selection] for run in runs])

    def cost(self, key: str) -> Summary:
        """Return ``flops_drop`` or ``params_drop`` in percent."""
        return summary([each.cost[key] for each in self.records])

    def epochs(self) -> str:
        """Return the epochs really run, baseline / sparsify / fine-tune; ``-`` where there was no stage."""
        lengths = [self.first.epochs.get(stage, 0) for stage in ("baseline", "sparsify", "finetune")]
        return " / ".join(str(n) if n else "-" for n in lengths)


def grouped(records: Iterable[Record]) -> list[Group]:
    """Group records that differ in nothing but the seed: same settings, code, data and counting rule.

    Raises:
        UserError: two different results exist for one configuration and seed.
    """
    return _group(records)


def dense_networks(records: Iterable[Record]) -> list[Group]:
    """Group records of runs that ended by their dense network alone, each such network once.

    Raises:
        UserError: two different dense networks exist for one configuration and seed.
    """
    ended = (record for record in records if not record.diverged)
    return _group(ended, DENSE_NEEDS, ("baseline",))


def sparsified(records: Iterable[Record]) -> list[Group]:
    """Group the records of runs that ended and used the ADMM by its result alone, each such result once.

    Raises:
        UserError: two different results of the ADMM exist for one configuration and seed.
    """
    used = (record for record in records if record.convergence and not record.diverged)
    return _group(used, ADMM_NEEDS, ("baseline", "sparsify"))


def _group(
    records: Iterable[Record], parts: Sequence[str] | None = None, stages: Sequence[str] | None = None
) -> list[Group]:
    """Group by what the result of the last of ``stages`` depends on, settings in ``parts``; None: by all."""
    found: dict[tuple[Any, ...], dict[str, Record]] = {}
    needs: dict[str, str] = {}
    for record in records:
        if record.asked not in needs:
            needs[record.asked] = canonical(effective(record.settings, parts))
        code = tuple(sorted(versions(record, stages).items()))
        identity = (needs[record.asked], code, record.data["fingerprint"], record.cost["rule"])
        key = record.stages[stages[-1]] if stages else record.key
        found.setdefault(identity, {}).setdefault(key, record)
    return [_over_seeds(list(runs.values())) for runs in found.values()]


def _over_seeds(runs: list[Record]) -> Group:
    for seed, times in Counter(run.seed for run in runs).items():
        if times > 1:
            same = ", ".join(f"{run.experiment}/{run.key}" for run in runs if run.seed == seed)
            raise UserError(f"{same}: {times} results of one configuration and seed; delete the outdated")
    ordered = sorted(runs, key=lambda run: run.seed)
    ended = tuple(run for run in ordered if not run.diverged)
    return Group(ended, tuple(run for run in ordered if run.diverged))


def effective(settings: Mapping[str, Any], parts: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the ``settings`` of a record on which a result depends: no places, nothing without effect.

    ``parts`` keeps only the keys that begin with one of these.
    """
    kept = {key: value for key, value in settings.items() if key not in PLACES}
    for part in _without_effect(kept):
        kept = {k: v for k, v in kept.items() if k != part and not k.startswith(f"{part}.")}
    has_target = settings["target_flops"] is not None or settings["target_params"] is not None
    if has_target and kept.get("p") != 0:  # L0 reads the ratio all the same
        del kept["ratio"]
    if parts is None:
        return kept
    read = (*parts, "ratio") if "p" in parts and settings["p"] == 0 else parts
    return {k: v for k, v in kept.items() if k.split(".")[0] in read and k != "model.floor"}


def _without_effect(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield settings, or the first parts of their keys, that this run did not read."""
    penalty = settings["regularizer.penalty"]
    if penalty in ("none", "bn_scale"):
        yield from ("p", "M", "rho", "criterion.weights", "regularizer.form", "regularizer.updates_per_epoch")
    if penalty == "none":
        yield from ("lamb", "regularizer.train")
    if settings["retrain"] != "finetune":
        yield "finetune"
    if settings["structure"] == "weights":
        yield from ("adjust", "model.floor", "criterion.across")
