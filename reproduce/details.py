"""Details of one run for the page of results: the command that repeats it, its settings, its series."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from math import log10
from pathlib import Path
from typing import Any

import yaml

from lpslim.experiment.config import IGNORED_KEYS, flat
from lpslim.experiment.records import Record
from reproduce.aggregate import DEFAULTS, outdated
from reproduce.names import WORDS

EXPERIMENTS = Path(__file__).parents[1] / "conf" / "experiment"
METHOD_GROUPS = {"regularizer", "criterion", "retrain", "granularity"}
UNQUOTED = re.compile(rf"(?!({'|'.join(WORDS.values())}|inf|nan)\Z)[A-Za-z][\w./-]*")  # strings in overrides
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # ten times as fast, where PyYAML was built with it
# Lines are drawn by the page's template: three of Matplotlib's figures for a run take 70 ms and 12 kB
WIDTH, HEIGHT, POINTS = 300, 100, 100  # units of a chart, and points of a line that it can tell apart
TRAINED = {"baseline": "dense", "sparsify": "sparsify", "finetune": "fine-tune"}  # in their order
SERIES = {"train_loss": "training", "val_accuracy": "validation", "test_accuracy": "test"}
RESIDUALS = {"primal": "primal, ‖W - Z‖", "dual": "dual, rho ‖Z - Z before‖"}
SHARES = {"sparsity": "zeros in Z", "capped": "weights at the cap M"}

Series = Mapping[str, Sequence[float]]


def details(run: Record, protocol: str) -> dict[str, Any]:
    """Return what the page tells of one run, for its template."""
    return {
        "run": run,
        "id": identity(run),
        "accuracy": {stage: by[protocol] for stage, by in run.accuracy.items()},
        "command": command(run),
        "yaml": yaml.dump(
            run.config, Dumper=DUMPER, sort_keys=False, allow_unicode=True, default_flow_style=None
        ),
        "outdated": outdated(run),
        "differs": [f"{key}: {own} in place of {file}" for key, (file, own) in run.differs.items()],
        "charts": [drawn for drawn in _charts(run) if drawn],
    }


def identity(run: Record) -> str:
    """Return the run's name in links of the page; records of two experiments may share a key."""
    return f"run/{run.experiment}/{run.key}"


def command(run: Record) -> str:
    """Return the command that repeats a run: its experiment and what differs, or else every setting.

    Places on a machine are in no record, so data and given weights must be where they are by default.
    """
    chosen, changed = [f"experiment={run.experiment}", f"seed={run.seed}"], run.differs
    of_method = any(key.split(".")[0] in METHOD_GROUPS for key in changed)  # fixed by its method
    if of_method or not (EXPERIMENTS / f"{run.experiment}.yaml").is_file():
        kept = IGNORED_KEYS - {"name", "dataset.source"}
        settings = {**DEFAULTS, **dict(flat(run.config))}  # a setting may be younger than a record
        chosen, changed = [], {key: [None, own] for key, own in settings.items() if key not in kept}
    chosen += [f"{'++' * ('options.' in key)}{key}={_typed(own)}" for key, (_, own) in changed.items()]
    return shlex.join(["python", "run.py", *chosen])


def _typed(value: Any) -> str:
    """Return a value as an override of the command line has it: JSON, but for the keys of a mapping."""
    if isinstance(value, str) and UNQUOTED.fullmatch(value):
        return value
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_typed(own)}" for key, own in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_typed, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def _charts(run: Record) -> list[dict[str, Any] | None]:
    """Return the curves over the epochs of all stages, and the ADMM's series by outer iteration."""
    curves = {name: run.curves[stage] for stage, name in TRAINED.items() if stage in run.curves}
    ends = dict(zip(curves, accumulate(len(curve.train_loss) for curve in curves.values()), strict=True))

    def over(*names: str) -> Series:
        return {
            SERIES[name]:
            [value for curve in curves.values() for value in getattr(curve, name)]
            for name in names
        }  # fmt: skip

    def rows(names: Mapping[str, str], scale: float) -> Series:
        return {name: [scale * r[key] for r in run.convergence if key in r] for key, name in names.items()}

    return [
        chart(f"{run.data.metric} (%) by epoch", over("test_accuracy", "val_accuracy"), ends),
        chart("loss by epoch", over("train_loss"), ends),
        chart("ADMM residuals by outer iteration, logarithmic", rows(RESIDUALS, 1), log=True),
        chart("share of entries (%) by outer iteration", rows(SHARES, 100)),
    ]


def chart(
    title: str, series: Series, ends: Mapping[str, int] | None = None, log: bool = False
) -> dict[str, Any] | None:
    """Return a line chart as points of its lines, with the values at its edges; None if it would be empty.

    ends: part of the horizontal axis -> its last position. log: the vertical axis is logarithmic, and
    values that are not positive have no point.
    """
    measure = (lambda value: log10(value)) if log else float
    lines = {
        name: [(i, measure(value)) for i, value in enumerate(values) if not log or value > 0]
        for name, values in series.items()
    }
    lines = {name: line for name, line in lines.items() if line}
    if not lines:
        return None
    levels = [level for line in lines.values() for _, level in line]
    length, low, high = max(map(len, series.values())), min(levels), max(levels)
    across, up, every = WIDTH / max(length - 1, 1), HEIGHT / (high - low or 1), -(-length // POINTS)
    paths = {}
    for name, line in lines.items():
        seen = [(i, level) for i, level in line if (length - 1 - i) % every == 0]
        points = [(round(i * across), round((high - level) * up)) for i, level in seen]
        steps = (f"{x - left} {y - above}" for (left, above), (x, y) in pairwise([(0, 0), *points]))
        paths[name] = f"m{'l'.join(steps)}".replace(" -", "-")
    return {
        "title": title, "paths": paths, "length": length,
        "edges": [f"{10**edge if log else edge:.3g}" for edge in (high, low)],
        "ends": {name: (end, round((end - 1) * across)) for name, end in (ends or {}).items()},
    }  # fmt: skip
