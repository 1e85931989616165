"""Schema of a run's configuration: typed keys, each with its default and its rule. Imports no torch."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from math import inf
from typing import Any, NamedTuple

from omegaconf import MISSING

from lpslim.base import registry
from lpslim.training.schedule import RuntimeConfig, TrainConfig

PROTOCOLS = ("last", "val", "paper")  # epoch whose test accuracy counts: training.evaluation.summarise
METHOD_KINDS = ("ADMM", "rival", "control", "unstructured")
PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
NAME = rf"(?!.{{201}}){PART}(/{PART})*"  # at most 200 characters; as a path it cannot climb out of its folder


class Rule(NamedTuple):
    """Rule for a value: a test, which null is not put to, and its words for the user."""

    accepts: Callable[[Any], object]
    allowed: str


def one_of(*names: str) -> Rule:
    """Return the rule for a value that is one of a few names."""
    return Rule(lambda value: value in names, f"one of {', '.join(names)}")


def between(least: int, most: int, unit: str) -> Rule:
    """Return the rule for a number from ``least`` to ``most``, both included."""
    return Rule(lambda value: least <= value <= most, f"{least} to {most} {unit}")


POSITIVE = Rule(lambda value: 0 < value < inf, "a positive number")
ZERO_OR_MORE = Rule(lambda value: 0 <= value < inf, "0 or more")
ONE_OR_MORE = Rule(lambda value: 1 <= value < inf, "1 or more")
BELOW_ONE = Rule(lambda value: 0 <= value < 1, "at least 0 and below 1")
SHARE = Rule(lambda value: 0 < value < 1, "a share above 0 and below 1")
FOLDER = Rule(lambda value: value and "\0" not in value and value[0] != "~", "a folder")  # a known ~ is gone
ONE_LINE = Rule(str.isprintable, "on one line")
PATH = Rule(re.compile(NAME).fullmatch, "parts of letters, digits, '.', '_' and '-' between slashes")
WORD = Rule(re.compile(PART).fullmatch, "letters, digits, '.', '_' and '-'")
INPUT = one_of("image", "text")
CRITERION = one_of(*registry.choices("pruning.criteria"))
KIND = Rule(lambda kind: kind in ("", *METHOD_KINDS), one_of(*METHOD_KINDS).allowed)
DENOMINATOR = Rule(lambda p: p == 0 or 1 <= p < inf, "1 or more (the penalty is |z|^(1/p)), or 0 for L0")
CAP = Rule(POSITIVE.accepts, "a positive number, or null for no synaptic inhibition")
PARAMS = Rule(POSITIVE.accepts, "the share to remove, above 0 and below 1, or how many to leave (67e6)")
SCALE = Rule(lambda scale: 0 < scale <= 1000, "a positive number, at most 1000")
SEED = Rule(lambda seed: 0 <= seed < 2**63, "0 or more, and below 2^63")
WEIGHTS = Rule(bool, "a file, the name of weights, or null")


def key(default: Any, rule: Rule | None = None, *, ignored: bool = False) -> Any:
    """Return a field with the rule of its values; ``ignored``: it changes no result, and no stage's key."""
    return field(default=default, metadata={"rule": rule, "ignored": ignored})


@dataclass
class Model:
    """Network: one of a family's, by its name there, from random or from pretrained ``weights``.

    weights: a file, ``public`` (the literature's, with their normalisation), torchvision's name, or one in
    lpslim.models.encoders.
    """

    family: str = key(MISSING, one_of(*registry.choices("models.families")))
    name: str = MISSING
    input: str = key("image", INPUT)
    floor: float = key(0.0, BELOW_ONE)  # share of its channels that a layer keeps which is not sensitive
    weights: str | None = key(None, WEIGHTS)
    weights_dir: str | None = key(None, FOLDER, ignored=True)  # of published files; null: they are downloaded


@dataclass
class Dataset:
    """Data set: ``source`` is its plug-in, ``name`` its name in records."""

    name: str = key(MISSING, WORD)
    source: str = key(MISSING, one_of(*registry.choices("data.datasets")), ignored=True)
    input: str = key("image", INPUT)
    root: str = key("data", FOLDER, ignored=True)
    download: bool = key(False, ignored=True)
    image_size: int = key(32, between(1, 4096, "pixels"))
    rgb: bool = False  # repeats grey images in three channels
    val_fraction: float = key(0.1, BELOW_ONE)  # 0: all images are trained on, and there is no such split
    crop_padding: int = key(0, between(0, 4096, "pixels"))
    flip: bool = False
    exif: bool = False  # turns images as their EXIF says; in Data.reading, so in a key, only if it is true
    workers: int = key(4, between(0, 1024, "processes"), ignored=True)  # Data.reading tells what they shape
    cache_gb: float = key(10.0, ZERO_OR_MORE, ignored=True)  # larger decoded images are not kept on the disk
    max_length: int = key(128, between(2, 65_536, "tokens"))  # where texts are cut
    tokenizer: str = ""  # of this encoder, a name in lpslim.models.encoders


@dataclass
class Regularizer:
    """Sparsify stage: the plug-ins of the regulariser and of its penalty, and the training under them."""

    name: str = key("admm", one_of(*registry.choices("training.regularizers"), "none"))
    penalty: str = key("lp", one_of(*registry.choices("sparsity.penalties")))
    form: str = key("squared", one_of("squared", "norm"))
    updates_per_epoch: int = key(1, ONE_OR_MORE)
    one_schedule: bool = False  # this stage and the fine-tune are one training along the fine-tune's settings
    options: dict[str, Any] = field(default_factory=dict)  # parameters that are none of the paper's knobs
    penalty_options: dict[str, Any] = field(default_factory=dict)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass
class Criterion:
    """Channel scores: the plug-in ``name``, applied to the ``weights`` Z or W."""

    name: str = key("magnitude", CRITERION)
    weights: str = key("Z", one_of("Z", "W"))
    score_norm: str = key("minmax", one_of("minmax", "uniform", "raw"))  # puts all layers on one scale
    layer_budget_from: str | None = key(None, CRITERION)  # the one that sets how many a layer keeps


@dataclass
class Scratch:
    """Training from scratch at the pruned widths (retrain=scratch_e, scratch_b)."""

    epochs: int | None = key(None, ONE_OR_MORE)  # null: those of the baseline


@dataclass
class Config:
    """One run. The paper's knobs are at the top level; conf/config.yaml explains them."""

    name: str = key("adhoc", PATH, ignored=True)
    label: str = key("", ONE_LINE, ignored=True)
    kind: str = key("", KIND, ignored=True)
    p: float = key(5.0, DENOMINATOR)
    M: float | None = key(1.0, CAP)
    rho: float = key(1.5e-3, POSITIVE)
    lamb: float = key(1e-4, POSITIVE)
    ratio: float = key(0.5, BELOW_ONE)
    adjust: float = key(0.45, BELOW_ONE)
    target_flops: float | None = key(None, SHARE)
    target_params: float | None = key(None, PARAMS)
    coupled: bool = False  # part of the keys where it is true
    coupled_floor: float = key(0.5, BELOW_ONE)
    granularity: str = key("channels", one_of("channels", "weights"))
    round_to: int = key(1, ONE_OR_MORE)
    protected: list[str] = field(default_factory=list)
    retrain: str = key("finetune", one_of("finetune", "rewind", "scratch_e", "scratch_b"))
    seed: int = key(0, SEED)
    protocol: str = key("last", one_of(*PROTOCOLS), ignored=True)
    epoch_scale: float = key(1.0, SCALE)
    equal_epochs: bool = False  # conf/config.yaml sets it; records from before it ran without
    results_dir: str = key("results", FOLDER, ignored=True)
    work_dir: str = key("outputs", FOLDER, ignored=True)
    dry_run: bool = key(False, ignored=True)
    model: Model = field(default_factory=Model)
    dataset: Dataset = field(default_factory=Dataset)
    regularizer: Regularizer = field(default_factory=Regularizer)
    criterion: Criterion = field(default_factory=Criterion)
    baseline: TrainConfig = field(default_factory=TrainConfig)
    finetune: TrainConfig = field(default_factory=TrainConfig)
    scratch: Scratch = field(default_factory=Scratch)
    trainer: RuntimeConfig = field(default_factory=RuntimeConfig)


def flat(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of a nested mapping; an empty mapping inside it is a value."""
    for name, value in mapping.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def is_path(metadata: Mapping[str, Any]) -> bool:
    """Return whether a field names a folder or a file, in which ``~`` is the user's home."""
    return metadata.get("rule") in (FOLDER, WEIGHTS)


def declared(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """Yield (dotted key, value, metadata of its field) of a configuration or a part of one."""
    for entry in fields(config):
        value = getattr(config, entry.name)
        if is_dataclass(value):
            yield from declared(value, f"{prefix}{entry.name}.")
        else:
            yield f"{prefix}{entry.name}", value, entry.metadata


IGNORED_KEYS = frozenset(name for name, _, metadata in declared(Config()) if metadata.get("ignored"))
