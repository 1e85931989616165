"""What a configuration is called in a table or a legend: by method, then by what else differs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lpslim.experiment.records import Record
from reproduce.groups import Group, effective
from reproduce.provenance import OUTDATED, outdated, short, versions

WORDS = {None: "null", True: "true", False: "false"}
PROTOCOL = {
    "last": "after the last epoch",
    "val": "at the epoch that is best on the validation split",
    "paper": "at the epoch that is best on the test set, as published tables mostly do: biased upwards",
}


def setting(key: str, value: Any) -> str:
    """Return ``key=value`` as one would type it on the command line."""
    if value is None or isinstance(value, bool):
        return f"{key}={WORDS[value]}"
    return f"{key}={value:.12g}" if isinstance(value, float) else f"{key}={value}"


RIVALS = {"fpgm": "FPGM", "hrank": "HRank", "chip": "CHIP", "random": "random choice",
          "bn_scale": "batch-norm scales", "magnitude": "magnitude"}  # fmt: skip
CONTROLS = {"scratch_e": ", from scratch (E)", "scratch_b": ", from scratch (B)", "finetune": ""}
FAMILIES = ("ADMM", "rival", "control", "unstructured")  # in a table's order
# globs of an encoder's layers that are kept whole -> what is then pruned
HALVES = {"*attention*": "neurons alone", "*intermediate*": "heads alone"}
SHARES = {"uniform": ", the same share of every layer", "raw": ", one threshold", "minmax": ""}

TELLING: tuple[Callable[[Record], str], ...] = (  # what else may differ, in this order
    lambda record: f"on {record.data['source']}",
    lambda record: f"data {short(record.data['fingerprint'])}",
    lambda record: f"code {'/'.join(map(str, versions(record).values()))}",
    lambda record: f"counted: {record.cost['rule']}",
)


def method(chosen: Mapping[str, Any]) -> str:
    """Return what was done in the paper's terms: ``Lp p=5, M=1``, ``L1``, ``no ADMM (magnitude)``."""
    penalty, across = chosen["regularizer.penalty"], chosen["criterion.across"]
    criterion = str(chosen["criterion.name"])
    selection = RIVALS.get(criterion, criterion)
    if penalty == "bn_scale" and (criterion, across) == ("bn_scale", "raw"):
        name = "network slimming"
    elif penalty == "none":
        name = _criterion(selection, across, chosen["criterion.widths"])
    else:
        name = pull(chosen)
        name += "" if (criterion, across) == ("magnitude", "minmax") else f", {selection}{SHARES[across]}"
    name += _protected(chosen["protected"])
    unstructured = ", single weights" if chosen["structure"] == "weights" else ""
    return name + unstructured + CONTROLS[chosen["retrain"]]


def _protected(layers: Sequence[str]) -> str:
    if len(layers) == 1 and layers[0] in HALVES:
        return f", {HALVES[layers[0]]}"
    return f", protected {', '.join(layers)}" if layers else ""


def pull(chosen: Mapping[str, Any]) -> str:
    """Return what the ADMM did alone, whatever was then chosen by its result: ``Lp p=5, M=1``."""
    penalty = chosen["regularizer.penalty"]
    return _lp(chosen["p"], chosen["M"]) if penalty == "lp" else str(penalty)


def family(chosen: Mapping[str, Any]) -> str:
    """Return what kind of entry a configuration is in a comparison: a key of FAMILIES."""
    if chosen["structure"] == "weights":
        return "unstructured"
    if chosen["regularizer.penalty"] not in ("none", "bn_scale"):
        return "ADMM"
    is_control = chosen["retrain"] != "finetune" or chosen["criterion.name"] == "random"
    is_selection = (chosen["criterion.name"], chosen["criterion.across"]) == ("magnitude", "minmax")
    return "control" if is_control or is_selection else "rival"


def _criterion(selection: str, across: str, widths: str | None) -> str:
    if widths:
        return f"{selection}, widths by {widths}"
    if (selection, across) == ("magnitude", "minmax"):
        return "no ADMM (magnitude)"
    if (selection, across) == ("magnitude", "uniform"):
        return "filter L1 norm, the same share of every layer"
    return selection + SHARES[across]


def _lp(p: float, M: float | None) -> str:
    cap = "no cap" if M is None else setting("M", M)
    if p == 0:
        return "L0"
    if p == 1:  # its weights are 1 everywhere: only a cap below 1 does anything
        return f"L1, {cap}" if M is not None and M < 1 else "L1"
    return f"Lp {setting('p', p)}, {cap}"


def labels(groups: Sequence[Group], parts: Sequence[str] | None = None) -> list[str]:
    """Return one distinct name per group: its method, and the settings that tell it from its like.

    Where it was measured by other code, or counted by another rule, than today's, a mark follows.

    ``parts``: as in :func:`reproduce.groups.effective`, the settings that matter.
    """
    names = [(method if parts is None else pull)(group.first.settings) for group in groups]
    scored = [_scored_on(group.first.settings) if parts is None else "" for group in groups]
    if len({each for each in scored if each}) > 1:
        names = [f"{n}, scored on {on}" if on else n for n, on in zip(names, scored, strict=True)]
    marks = [f" {OUTDATED}" if outdated(group.first) else "" for group in groups]
    marked = zip(names, marks, strict=True)
    shared: dict[tuple[str, str], list[int]] = {}
    for i, both in enumerate(marked):
        shared.setdefault(both, []).append(i)
    for (name, _), alike in shared.items():
        extras = _telling([groups[i] for i in alike], parts) if len(alike) > 1 else [[]]
        for i, extra in zip(alike, extras, strict=True):
            names[i] = ", ".join([name, *extra])
    return [name + mark for name, mark in zip(names, marks, strict=True)]


def _scored_on(chosen: Mapping[str, Any]) -> str:
    """Return Z or W, empty where there is no Z to choose."""
    without = chosen["regularizer.penalty"] in ("none", "bn_scale")
    return "" if without else str(chosen["criterion.weights"])


def _telling(alike: Sequence[Group], parts: Sequence[str] | None) -> list[list[str]]:
    """Return per group the settings in which these groups differ; where none do, their data or their code."""
    each_settings = [effective(group.first.settings, parts) for group in alike]
    keys = sorted({key for each in each_settings for key in each})
    varying = [key for key in keys if len({repr(each.get(key)) for each in each_settings}) > 1]
    extras = [[setting(key, each[key]) for key in varying if key in each] for each in each_settings]
    found = [group.first for group in alike]
    for tell in TELLING:
        words = [tell(each) for each in found]
        if len({tuple(each) for each in extras}) < len(extras) and len(set(words)) > 1:
            extras = [[*extra, word] for extra, word in zip(extras, words, strict=True)]
    return extras
