"""Names of configurations in tables and legends: the method, and in which settings equal ones differ."""

from collections.abc import Sequence
from typing import Any

from lpslim.experiment.config import IGNORED_KEYS, flat
from lpslim.experiment.records import Record
from reproduce.aggregate import Group, outdated

KINDS = {"ADMM": 0, "rival": 1, "control": 2, "unstructured": 3}  # of methods: their order; others come last
PROTOCOL = {
    "last": "after the last epoch",
    "val": "at the epoch that is best on the validation split",
    "paper": "at the epoch that is best on the test set, as published tables mostly do: biased upwards",
}
WORDS = {"None": "null", "True": "true", "False": "false"}


def named(groups: Sequence[Group]) -> list[tuple[str, Group]]:
    """Return the groups under their names, by kind of method and name; a mark follows what is outdated."""
    alike: dict[str, list[Group]] = {}
    for group in groups:
        alike.setdefault(group.first.method, []).append(group)
    pairs = [
        (", ".join([method, *details]) + " †" * bool(outdated(group.first)), group)
        for method, own in alike.items()
        for group, details in zip(own, _details([group.first for group in own]), strict=True)
    ]
    return sorted(pairs, key=lambda pair: (KINDS.get(pair[1].first.kind, len(KINDS)), pair[0]))


def _details(records: Sequence[Record]) -> list[list[str]]:
    """Return for each record the settings, data and code that tell it from the others."""
    if len(records) == 1:
        return [[]]
    settings = [_settings(record) for record in records]
    first = settings[0]
    keys = dict.fromkeys(key for own in settings for key in own)
    varying = [k for k in keys if k not in IGNORED_KEYS and any(s.get(k) != first.get(k) for s in settings)]
    return [[setting(key, own[key]) for key in varying if key in own] for own in settings]


def _settings(record: Record) -> dict[str, Any]:
    data = f"{record.data.source} ({record.data.fingerprint.rpartition(':')[2][:8]})"
    code = "/".join(map(str, record.versions.values()))
    return {**dict(flat(record.config)), "seed": None, "data": data, "code": code, "rule": record.cost.rule}


def setting(key: str, value: Any) -> str:
    """Return ``key=value`` as one would type it on the command line."""
    text = f"{value:.12g}" if isinstance(value, float) else str(value)
    return f"{key}={WORDS.get(text, text)}"


def shared(labels: Sequence[str]) -> str:
    """Return what several names have in common, such as ``Lp p=5, M=1``; all of them if nothing."""
    parts = [label.split(", ") for label in labels]
    common = [part for part in parts[0] if all(part in other for other in parts)]
    return ", ".join(common) or "; ".join(labels)


def plain(text: str) -> str:
    """Return ``text`` on one line: every control character and run of white space is one space."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())
