"""Names of configurations in tables and figures: the method, and what tells it from others."""

from collections.abc import Sequence
from typing import Any

from lpslim.experiment.config import IGNORED_KEYS, METHOD_KINDS, flat
from lpslim.experiment.records import Record
from reproduce.aggregate import DEFAULTS, LAYOUT, Group, outdated
from reproduce.published import TITLES

ORDER = {kind: place for place, kind in enumerate(METHOD_KINDS)}  # in tables; others come last
WORDS = {"None": "null", "True": "true", "False": "false"}


def named(groups: Sequence[Group]) -> list[tuple[str, Group]]:
    """Return the groups under their names, by kind of method and name; a mark follows what is outdated."""
    alike: dict[str, list[Group]] = {}
    for group in groups:
        alike.setdefault(group.first.method, []).append(group)
    pairs = [
        (", ".join([method, *details]) + (" †" if outdated(group.first) else ""), group)
        for method, members in alike.items()
        for group, details in zip(members, _details([group.first for group in members]), strict=True)
    ]
    return sorted(pairs, key=lambda pair: (ORDER.get(pair[1].first.kind, len(ORDER)), pair[0]))


def _details(records: Sequence[Record]) -> list[list[str]]:
    """Return for each record what tells it from the others: a published row's name, or settings, data, code.

    Where none of these does, its key.
    """
    rows = [r.experiment.rpartition("/")[2] + scaled(r) for r in records if is_row(r)]
    if len(records) > 1 and len(records) == len(rows) == len(set(rows)):
        return [[row] for row in rows]
    whole = [
        {**r.config, "seed": 0, "data": r.data.source, "code": list(r.versions.values()), "rule": r.cost.rule}
        for r in records
    ]
    parts = _differing(whole)
    settings = [dict(flat({key: config.get(key) for key in parts})) for config in whole]
    keys = _differing(settings)
    for some in ([key for key in keys if key not in LAYOUT], keys):
        details = [[setting(key, chosen[key]) for key in some if key in chosen] for chosen in settings]
        if len(set(map(tuple, details))) == len(details):
            return details
    return [[*own, f"key={r.groups['finetune'][:8]}"] for own, r in zip(details, records, strict=True)]


def _differing(settings: Sequence[dict[str, Any]]) -> list[str]:
    """Return the keys whose values are not the same everywhere and change a result.

    A setting that is younger than a record has its default there.
    """
    keys = dict.fromkeys(key for chosen in settings for key in chosen if key not in IGNORED_KEYS)
    return [key for key in keys if any(_of(own, key) != _of(settings[0], key) for own in settings)]


def _of(settings: dict[str, Any], key: str) -> Any:
    return settings.get(key, DEFAULTS.get(key))


def setting(key: str, value: Any) -> str:
    """Return ``key=value`` as one would type it on the command line."""
    text = f"{value:.12g}" if isinstance(value, float) else str(value).replace("'", "").replace(", ", ",")
    return f"{key}={WORDS.get(text, text)}"


def target(record: Record) -> str:
    """Return what a run was asked to remove, as one would type it, such as ``target_flops=0.5``."""
    key = next((key for key in ("target_flops", "target_params") if record.config[key]), "ratio")
    return setting(key, record.config[key])


def budget(record: Record) -> str:
    """Return the same in words for a share of the FLOPs: ``50 % of the multiply-adds removed``."""
    share = record.config["target_flops"]
    return f"{100 * share:g} % of the multiply-adds removed" if share else target(record)


def is_row(record: Record) -> bool:
    """Return whether a run is that of a published row, of its length or of a share of it."""
    return record.experiment.partition("/")[0] in TITLES and record.differs.keys() <= {"epoch_scale"}


def scaled(record: Record) -> str:
    """Return what follows the name of runs whose epochs were scaled; empty if they were not."""
    scale = record.config.get("epoch_scale", 1.0)
    return f", {scale:g} of the epochs" if scale != 1 else ""


def shared(labels: Sequence[str]) -> str:
    """Return what several names have in common, such as ``Lp p=5, M=1``; all of them if nothing."""
    parts = [label.split(", ") for label in labels]
    common = [part for part in parts[0] if all(part in other for other in parts)]
    return ", ".join(common) or "; ".join(labels)


def plain(text: str) -> str:
    """Return ``text`` on one line: every control character and run of white space is one space."""
    printable = text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)
    return " ".join(printable.split())
