"""What a configuration is called in a table or a legend: by method, then by what else differs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lpslim.keys import canonical
from lpslim.records import settings as recorded
from reproduce.groups import Group, settings

WORDS = {None: "null", True: "true", False: "false"}
PROTOCOL = {
    "last": "after the last epoch",
    "val": "at the epoch that is best on the validation split",
    "paper": "at the epoch that is best on the test set, as published tables mostly do: biased upwards",
}
SHORT = 8  # characters of a fingerprint


def setting(key: str, value: Any) -> str:
    """Return ``key=value`` as one would type it on the command line."""
    if value is None or isinstance(value, bool):
        return f"{key}={WORDS[value]}"
    return f"{key}={value:.12g}" if isinstance(value, float) else f"{key}={value}"


RIVALS = {"fpgm": "FPGM", "hrank": "HRank", "chip": "CHIP", "random": "random choice",
          "bn_scale": "batch-norm scales", "magnitude": "magnitude"}  # fmt: skip
CONTROLS = {"scratch_e": ", from scratch (E)", "scratch_b": ", from scratch (B)", "finetune": ""}
FAMILIES = ("ADMM", "rival", "control", "unstructured")  # in a table's order
SHARES = {"uniform": ", the same share of every layer", "raw": ", one threshold", "minmax": ""}


def method(config: Mapping[str, Any]) -> str:
    """Return what was done in the paper's terms: ``Lp p=5, M=1``, ``L1``, ``no ADMM (magnitude)``."""
    chosen = recorded(config)
    penalty, across = chosen["regularizer.penalty"], chosen["criterion.across"]
    criterion = str(chosen["criterion.name"])
    selection = RIVALS.get(criterion, criterion)
    if penalty == "bn_scale" and (criterion, across) == ("bn_scale", "raw"):
        name = "network slimming"
    elif penalty == "none":
        name = _criterion(selection, across, chosen["criterion.widths"])
    else:
        name = _lp(config["p"], config["M"]) if penalty == "lp" else str(penalty)
        name += "" if (criterion, across) == ("magnitude", "minmax") else f", {selection}{SHARES[across]}"
    if chosen["protected"]:
        name += f", protected {', '.join(chosen['protected'])}"
    unstructured = ", single weights" if chosen["structure"] == "weights" else ""
    return name + unstructured + CONTROLS[chosen["retrain"]]


def family(config: Mapping[str, Any]) -> str:
    """Return what kind of entry a configuration is in a comparison: a key of FAMILIES."""
    chosen = recorded(config)
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

    ``parts``: as in :func:`reproduce.groups.settings`, the settings that matter.
    """
    names = [method(group.first.config) for group in groups]
    scored = [_scored_on(group.first.config) if parts is None else "" for group in groups]
    if len({each for each in scored if each}) > 1:
        names = [f"{n}, scored on {on}" if on else n for n, on in zip(names, scored, strict=True)]
    for name in sorted({name for name, times in Counter(names).items() if times > 1}):
        alike = [i for i, each in enumerate(names) if each == name]
        for i, extra in zip(alike, _telling([groups[i] for i in alike], parts), strict=True):
            names[i] = ", ".join([name, *extra])
    return names


def _scored_on(config: Mapping[str, Any]) -> str:
    """Return Z or W, empty where there is no Z to choose."""
    without = config["regularizer"]["penalty"] in ("none", "bn_scale")
    return "" if without else str(config["criterion"]["weights"])


def _telling(alike: Sequence[Group], parts: Sequence[str] | None) -> list[list[str]]:
    """Return per group the settings in which these groups differ; where none do, their data."""
    each_settings = [settings(group.first.config, parts) for group in alike]
    keys = sorted({key for each in each_settings for key in each})
    varying = [key for key in keys if len({canonical(each.get(key)) for each in each_settings}) > 1]
    extras = [[setting(key, each[key]) for key in varying if key in each] for each in each_settings]
    if len({tuple(each) for each in extras}) == len(extras):
        return extras
    data = [group.first.data for group in alike]
    named = len({each["source"] for each in data}) > 1
    where = [f"on {each['source']}" if named else f"data {each['fingerprint'][:SHORT]}" for each in data]
    return [[*extra, place] for extra, place in zip(extras, where, strict=True)]
