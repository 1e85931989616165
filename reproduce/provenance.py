"""What a record rests on: code, counting rule, data. And so whether a table may print it, and how."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from lpslim.base.hashing import canonical
from lpslim.experiment.config import Dataset
from lpslim.experiment.records import PLACES, Record
from lpslim.experiment.versions import RULE, VERSIONS

EXPERIMENTS = Path(__file__).parents[1] / "conf" / "experiment"
OUTDATED, DISPUTED = "†", "‡"
SHORT = 8  # characters of a fingerprint
AFTER_READING = {"dataset.val_fraction", "dataset.crop_padding", "dataset.flip"}  # in no fingerprint
READING = sorted({f"dataset.{each.name}" for each in fields(Dataset)} - PLACES - AFTER_READING)


def versions(record: Record, stages: Iterable[str] | None = None) -> dict[str, int]:
    """Return the version of the code that computed each stage (of ``stages``, where given)."""
    asked = set(record.stages if stages is None else stages)
    return {stage: record.versions.get(stage, 1) for stage in record.stages if stage in asked}


def outdated(record: Record, stages: Iterable[str] | None = None) -> str:
    """Return in which stages, or by which rule, today's code differs from a record's; empty if in none.

    ``stages``: those that matter, where not all do; then the rule of counting does not.
    """
    now = {stage: VERSIONS.get("score" if stage == "widths" else stage) for stage in record.stages}
    reasons = [
        f"{stage} by code version {version}, which is now {now[stage]}"
        for stage, version in versions(record, stages).items()
        if version != now[stage]
    ]
    if stages is None and record.cost["rule"] != RULE:
        reasons.append(f"counted by another rule: {record.cost['rule']}")
    return "; ".join(reasons)


STREAMED = "listing:"  # how the fingerprint of images begins that are read from disk again and again


def sift(found: Sequence[Record], keep: bool) -> tuple[list[Record], list[str]]:
    """Return the records that are shown, and remarks on those that are outdated.

    These are left out, or with ``keep`` shown with a mark.
    """
    old: dict[tuple[str, str, str], list[Record]] = {}
    for record in found:
        if reason := outdated(record):
            departing = canonical(record.differs)
            old.setdefault((record.experiment, reason, departing), []).append(record)
    verb = f"{OUTDATED} Outdated" if keep else "Outdated and left out (--outdated shows them)"
    remarks = [
        f"{verb}: {experiment}, seed {_seeds(runs)} ({reason}). {_again(runs)}"
        for (experiment, reason, _), runs in sorted(old.items(), key=lambda each: each[0])
    ]
    return [record for record in found if keep or not outdated(record)], remarks


def _seeds(runs: Sequence[Record]) -> str:
    return ",".join(str(seed) for seed in sorted({run.seed for run in runs}))


def _again(runs: Sequence[Record]) -> str:
    """Return how to measure these runs, which differ in the seed alone, once more."""
    first = runs[0]
    if not (EXPERIMENTS / f"{first.experiment}.yaml").exists():
        return "There is no experiment file of this name: its settings are in the record"
    changed = [_override(key, ours) for key, (_, ours) in first.differs.items() if key not in PLACES]
    sweep = "-m " if len(runs) > 1 else ""
    words = [f"experiment={first.experiment}", *changed, f"seed={_seeds(runs)}"]
    return f"To measure again: python run.py {sweep}{shlex.join(words)}"


def _override(key: str, value: Any) -> str:
    """Return ``key=value`` in Hydra's grammar."""
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z][\w./-]*", value):
        return f"{key}={value}"
    return f"{key}={json.dumps(value)}"


def disputed(found: Iterable[Record]) -> frozenset[str]:
    """Return the fingerprints of data that other data claim to be: same name, source and settings.

    Which of them are what the name says cannot be known from records.
    """
    return frozenset(fingerprint for others in _rivals(found).values() for fingerprint in others)


def disputes(found: Iterable[Record]) -> list[str]:
    """Return a remark on every such name."""
    return [
        f"{DISPUTED} Different data are called {name}, {source}: {', '.join(short(f) for f in others)}. They "
        "are not averaged, and neither is compared with a published figure."
        for (name, source, *_), others in sorted(_rivals(found).items())
    ]


def _rivals(found: Iterable[Record]) -> dict[tuple[str, ...], list[str]]:
    seen: dict[tuple[str, ...], set[str]] = {}
    for record in found:
        data = record.data
        called = (data["name"], data["source"], *(repr(record.settings[key]) for key in READING))
        seen.setdefault(called, set()).add(data["fingerprint"])
    return {called: sorted(others) for called, others in seen.items() if len(others) > 1}


def source(record: Record, doubtful: frozenset[str]) -> str:
    """Return where a record's data came from; with a mark and the fingerprint, where that is disputed.

    Streamed images come with the size they were cut to: their folder does not tell it.
    """
    fingerprint, name = record.data["fingerprint"], str(record.data["source"])
    if fingerprint.startswith(STREAMED):
        name += f", cut to {record.settings['dataset.image_size']} px"
    return f"{name} {DISPUTED} {short(fingerprint)}" if fingerprint in doubtful else name


def short(fingerprint: str) -> str:
    """Return the beginning of a fingerprint, enough to tell two apart."""
    return fingerprint.rpartition(":")[2][:SHORT]
