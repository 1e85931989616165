"""Schema of a run's configuration: the typed keys of the command line. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from omegaconf import MISSING

from lpslim.training.schedule import RuntimeConfig, TrainConfig

FORMS = ("squared", "norm")
SCORED_WEIGHTS = ("Z", "W")
SCORE_NORMS = ("minmax", "uniform", "raw")  # pruning.selection defines them; it imports torch
GRANULARITIES = ("channels", "weights")
PROTOCOLS = ("last", "val", "paper")  # epoch whose test accuracy counts: training.evaluation.summarise
RETRAINING = ("finetune", "scratch_e", "scratch_b")


def ignored(default: Any) -> Any:
    """Return a dataclass field that changes no result and so is part of no stage's key."""
    return field(default=default, metadata={"ignored": True})


@dataclass
class Model:
    """Network: ``family`` is a plug-in of lpslim.models.families, ``name`` one of the networks it builds.

    ``input``: image or text. ``floor``: share of its channels that every layer keeps, unless it is sensitive.
    ``weights``: pretrained weights to start from: a file, torchvision's weights of this name, or the name of an
    encoder in lpslim.models.encoders; null for random ones.
    """

    family: str = MISSING
    name: str = MISSING
    input: str = "image"
    floor: float = 0.0
    weights: str | None = None


@dataclass
class Dataset:
    """Data set: ``source`` is a plug-in of lpslim.data.datasets, ``name`` becomes part of the record.

    ``rgb`` repeats grey images in three channels. ``workers`` processes decode the images of a folder, once if
    the decoded cache takes at most ``cache_gb`` GB of disk, else in every epoch. Texts are cut at ``max_length``
    tokens of the encoder ``tokenizer`` (a name in lpslim.models.encoders).
    """

    name: str = MISSING
    source: str = ignored(MISSING)
    input: str = "image"
    root: str = ignored("data")
    download: bool = ignored(False)
    image_size: int = 32
    rgb: bool = False
    val_fraction: float = 0.1
    crop_padding: int = 0
    flip: bool = False
    workers: int = ignored(4)  # shape the augmentation of streamed images, which Data.reading tells
    cache_gb: float = ignored(10.0)  # more would not stay in the memory of a machine with 16 GB
    max_length: int = 128
    tokenizer: str = ""


@dataclass
class Regularizer:
    """Sparsify stage: ``name`` is a plug-in of lpslim.training.regularizers, or none.

    ``penalty`` is a plug-in of lpslim.sparsity.penalties. ``options`` and ``penalty_options`` are what a plug-in
    takes beyond the paper's knobs, by the names of its parameters.
    """

    name: str = "admm"
    penalty: str = "lp"
    form: str = "squared"
    updates_per_epoch: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    penalty_options: dict[str, Any] = field(default_factory=dict)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass
class Criterion:
    """Channel scores: ``name`` is a plug-in of lpslim.pruning.criteria, applied to the ``weights`` Z or W.

    ``score_norm`` puts the scores of different layers on one scale. ``layer_budget_from`` is another criterion
    that sets how many channels a layer keeps; ``name`` then only ranks channels inside a layer.
    """

    name: str = "magnitude"
    weights: str = "Z"
    score_norm: str = "minmax"
    layer_budget_from: str | None = None


@dataclass
class Scratch:
    """Training from scratch at the pruned widths (retrain=scratch_e, scratch_b).

    ``epochs``: length; null for the epochs of ``baseline``.
    """

    epochs: int | None = None


@dataclass
class Config:
    """One run. The paper's knobs are at the top level; conf/config.yaml explains them."""

    name: str = ignored("adhoc")
    label: str = ignored("")
    kind: str = ignored("")
    p: float = 5.0
    M: float | None = 1.0
    rho: float = 1.5e-3
    lamb: float = 1e-4
    ratio: float = 0.5
    adjust: float = 0.45
    target_flops: float | None = None
    target_params: float | None = None
    granularity: str = "channels"
    round_to: int = 1
    protected: list[str] = field(default_factory=list)
    retrain: str = "finetune"
    seed: int = 0
    protocol: str = ignored("last")
    epoch_scale: float = 1.0
    results_dir: str = ignored("results")
    work_dir: str = ignored("outputs")
    dry_run: bool = ignored(False)
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
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _ignored_keys(config: Any, prefix: str = "") -> Iterator[str]:
    for entry in fields(config):
        if entry.metadata.get("ignored"):
            yield prefix + entry.name
        elif is_dataclass(value := getattr(config, entry.name)):
            yield from _ignored_keys(value, f"{prefix}{entry.name}.")


IGNORED_KEYS = frozenset(_ignored_keys(Config()))
