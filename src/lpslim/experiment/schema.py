"""What a record must be, to the last value. Files of others are read against this; see lpslim.strict."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, NotRequired

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter
from typing_extensions import TypedDict

from lpslim.experiment.config import (
    ACROSS,
    LONGEST_NAME,
    NAMED,
    PROTOCOLS,
    RETRAINING,
    SCORED_ON,
    STRUCTURES,
    Config,
    is_name,
)

VERSION = 1
WORDS = {"structure": STRUCTURES, "retrain": RETRAINING, "selection": PROTOCOLS}

Key = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Fingerprint = Annotated[str, StringConstraints(pattern=r"^(listing:)?[0-9a-f]{64}$")]
Name = Annotated[str, StringConstraints(max_length=LONGEST_NAME)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
From1 = Annotated[int, Field(ge=1, lt=2**63)]
Mark = Annotated[float, Field(ge=-100, le=100)]  # a correlation may be negative
Drop = Annotated[float, Field(le=100)]  # a network may also grow
Share = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(ge=0)]
Stage = Literal["baseline", "sparsify", "widths", "score", "prune", "finetune"]


def _name(text: str) -> str:
    if not is_name(text):
        raise ValueError(f"must be {NAMED}")
    return text


def _widths(pair: tuple[int, int]) -> tuple[int, int]:
    if pair[0] > pair[1]:
        raise ValueError("keeps more than there are")
    return pair


def _settings(config: Config) -> Config:
    for key, allowed in WORDS.items():
        if getattr(config, key) not in allowed:
            raise ValueError(f"{key}={getattr(config, key)} is not one of {', '.join(allowed)}")
    for key, allowed in (("across", ACROSS), ("weights", SCORED_ON)):
        if getattr(config.criterion, key) not in allowed:
            raise ValueError(f"criterion.{key} is not one of {', '.join(allowed)}")
    return config


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("must be a finite number")
    if value is not None and not isinstance(value, bool | int | float | str):
        raise ValueError("must be a text, a number, true, false or null")
    return value


def _setting(value: Any) -> Any:
    return [_plain(each) for each in value] if isinstance(value, list) else _plain(value)


Value = Annotated[Any, AfterValidator(_plain)]
Setting = Annotated[Any, AfterValidator(_setting)]
Experiment = Annotated[str, AfterValidator(_name)]
Widths = Annotated[tuple[From1, From1], AfterValidator(_widths)]
Settings = Annotated[Config, AfterValidator(_settings)]


class Samples(TypedDict):
    """Which data, and how many samples of them."""

    name: Name
    source: str
    fingerprint: Fingerprint
    metric: NotRequired[Literal["accuracy", "f1", "matthews", "spearman"]]
    train: Count
    val: Count
    test: Count


class Size(TypedDict):
    """Of one network."""

    macs: Count
    params: Count


class Cost(TypedDict):
    """Of both networks; a run that diverged may not have come so far."""

    rule: str
    dense: NotRequired[Size]
    pruned: NotRequired[Size]
    flops_drop: NotRequired[Drop]
    params_drop: NotRequired[Drop]


class Marks(TypedDict):
    """One stage's test results under every protocol."""

    last: Mark
    val: Mark
    paper: Mark


class Last(TypedDict):
    """The pruned network's, which is not trained yet."""

    last: Mark


class Accuracy(TypedDict, total=False):
    """By stage."""

    baseline: Marks
    sparsify: Marks
    prune: Last
    finetune: Marks


class Curve(TypedDict):
    """One value per epoch."""

    train_loss: list[float]
    val_accuracy: list[Mark]
    test_accuracy: list[Mark]


class Iteration(TypedDict):
    """One outer iteration of the ADMM."""

    iteration: Amount
    epoch: Amount
    primal: Amount
    dual: Amount
    sparsity: Share
    capped: Share


class Divergence(TypedDict, total=False):
    """Where the loss was no number any more; empty if it always was one."""

    stage: Stage
    epoch: From1
    step: From1
    loss: float | str | None


class Shape(BaseModel):
    """The fields of :class:`lpslim.experiment.records.Record`, which says what they mean."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    experiment: Experiment
    key: Key
    seed: Count
    differs: dict[str, Annotated[list[Setting], Field(min_length=2, max_length=2)]]
    config: Settings
    stages: dict[Stage, Key]
    data: Samples
    cost: Cost
    accuracy: Accuracy
    channels: dict[str, Widths]
    convergence: list[Iteration]
    curves: dict[Stage, Curve]
    seconds: dict[Stage, Amount]
    environment: dict[str, Value]
    versions: dict[Stage, From1] = {}
    weights: dict[Stage, Sha256] = {}
    diverged: Divergence = {}
    schema_: Literal[1] = Field(alias="schema")


SHAPE: TypeAdapter[Any] = TypeAdapter(Shape)


def fault(record: dict[str, Any]) -> str:
    """Return why a record of the right shape cannot be used, empty if it can."""
    diverged = record.get("diverged", {})
    if diverged and not {"stage", "epoch", "step"} <= diverged.keys():
        return "diverged: needs stage, epoch and step"
    whole = {"dense", "pruned", "flops_drop", "params_drop"}
    lacking = sorted(whole - record["cost"].keys())
    if lacking and (not diverged or len(lacking) < len(whole)):
        return f"cost.{lacking[0]}: missing"
    if diverged:
        return ""
    for field, needed in (("accuracy", ("baseline", "prune", "finetune")), ("stages", ("baseline",))):
        if missing := [stage for stage in needed if stage not in record[field]]:
            return f"{field}.{missing[0]}: missing"
    if record["convergence"] and "sparsify" not in record["stages"]:
        return "stages.sparsify: missing, but there is a convergence"
    return ""
