"""Runs grouped over seeds: what was measured more than once counts as one configuration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lpslim.errors import UserError
from lpslim.keys import canonical
from lpslim.records import PLACES, Record
from lpslim.records import settings as recorded
from lpslim.statistics import Summary, summary

# What the networks before pruning depend on, by the first part of a setting's key
DENSE_NEEDS = ("model", "dataset", "baseline", "trainer", "epoch_scale")
METRICS = {"accuracy": "accuracy", "f1": "F1", "matthews": "Matthews correlation",
           "spearman": "Spearman correlation"}  # fmt: skip
ADMM_NEEDS = (*DENSE_NEEDS, "p", "M", "rho", "lamb", "regularizer")


@dataclass(frozen=True)
class Group:
    """Records that differ in nothing but the seed, in the order of the seeds; never empty."""

    records: tuple[Record, ...]

    @property
    def first(self) -> Record:
        """The record of the lowest seed."""
        return self.records[0]

    @property
    def pair(self) -> tuple[str, str]:
        """Data set and model."""
        return str(self.first.data["name"]), str(self.first.config["model"]["name"])

    @property
    def table(self) -> str:
        """The first part of the experiment's name: the published table, for a row of the paper."""
        return self.first.experiment.partition("/")[0]

    @property
    def metric(self) -> str:
        """How the data set is marked, such as ``accuracy`` or ``F1``."""
        return METRICS[self.first.data.get("metric", "accuracy")]

    def accuracy(self, stage: str, selection: str) -> Summary:
        """Return the test accuracy after ``stage`` in percent (the stage prune has ``last`` alone)."""
        protocol = "last" if stage == "prune" else selection
        return summary([each.accuracy[stage][protocol] for each in self.records])

    def drop(self, selection: str) -> Summary:
        """Return dense minus fine-tuned accuracy, run by run, in points; a gain is negative."""
        runs = [each.accuracy for each in self.records]
        return summary([run["baseline"][selection] - run["finetune"][selection] for run in runs])

    def cost(self, key: str) -> Summary:
        """Return ``flops_drop`` or ``params_drop`` in percent."""
        return summary([each.cost[key] for each in self.records])

    def epochs(self) -> str:
        """Return the epochs really run, baseline / sparsify / fine-tune; ``-`` where there was no stage."""
        curves = self.first.curves
        lengths = [len(curves.get(s, {}).get("train_loss", [])) for s in ("baseline", "sparsify", "finetune")]
        return " / ".join(str(n) if n else "-" for n in lengths)


def grouped(records: Iterable[Record]) -> list[Group]:
    """Group records that differ in nothing but the seed: same settings, data and counting rule.

    Raises:
        UserError: two different results exist for one configuration and seed.
    """
    return _group(records, lambda r: settings(r.config), lambda r: r.key)


def dense_networks(records: Iterable[Record]) -> list[Group]:
    """Group records by their dense network alone, each such network once.

    Raises:
        UserError: two different dense networks exist for one configuration and seed.
    """

    return _group(records, lambda r: settings(r.config, DENSE_NEEDS), lambda r: r.stages["baseline"])


def sparsified(records: Iterable[Record]) -> list[Group]:
    """Group the records that used the ADMM by its result alone, each such result once.

    Raises:
        UserError: two different results of the ADMM exist for one configuration and seed.
    """
    used = (record for record in records if record.convergence)
    return _group(used, lambda r: settings(r.config, ADMM_NEEDS), lambda r: r.stages["sparsify"])


def _group(
    records: Iterable[Record], needs: Callable[[Record], dict[str, Any]], key: Callable[[Record], str]
) -> list[Group]:
    found: dict[str, dict[str, Record]] = {}
    for record in records:
        identity = canonical([needs(record), record.data["fingerprint"], record.cost["rule"]])
        found.setdefault(identity, {}).setdefault(key(record), record)
    return [_over_seeds(list(runs.values())) for runs in found.values()]


def _over_seeds(runs: list[Record]) -> Group:
    for seed, times in Counter(run.seed for run in runs).items():
        if times > 1:
            same = ", ".join(f"{run.experiment}/{run.key}" for run in runs if run.seed == seed)
            raise UserError(f"{same}: {times} results of one configuration and seed; delete the outdated")
    return Group(tuple(sorted(runs, key=lambda run: run.seed)))


def settings(config: Mapping[str, Any], parts: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the settings that a result depends on, flat: no places, nothing that was without effect.

    ``parts`` keeps only the keys that begin with one of these.
    """
    kept = {key: value for key, value in recorded(config).items() if key not in PLACES}
    for part in _without_effect(kept):
        kept = {k: v for k, v in kept.items() if k != part and not k.startswith(f"{part}.")}
    has_target = config["target_flops"] is not None or config["target_params"] is not None
    if has_target and kept.get("p") != 0:  # L0 reads the ratio all the same
        del kept["ratio"]
    if parts is None:
        return kept
    read = (*parts, "ratio") if "p" in parts and config["p"] == 0 else parts
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
