"""What a configuration is called in a table or a legend: by method, then by what else differs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lpslim.keys import canonical
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


def method(config: Mapping[str, Any]) -> str:
    """Return what was done in the paper's terms: ``Lp p=5, M=1``, ``L1``, ``no ADMM (magnitude)``."""
    penalty, criterion = config["regularizer"]["penalty"], config["criterion"]["name"]
    if penalty == "none":
        return f"no ADMM ({criterion})"
    name = _lp(config["p"], config["M"]) if penalty == "lp" else str(penalty)
    return name if criterion == "magnitude" else f"{name}, {criterion}"


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
    return "" if config["regularizer"]["penalty"] == "none" else str(config["criterion"]["weights"])


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
