"""The typed schema of a run, and the checks that cross its groups."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from omegaconf import MISSING

from lpslim.base import registry
from lpslim.base.errors import UserError
from lpslim.training.schedule import DEVICES, OPTIMIZERS, PRECISIONS, SCHEDULES, Recipe, Trainer

FORMS = ("squared", "norm")
SCORED_ON = ("Z", "W")
ACROSS = ("minmax", "uniform", "raw")
STRUCTURES = ("channels", "weights")
PROTOCOLS = (
    "last",
    "val",
    "paper",
)  # which epoch's test accuracy counts: lpslim.training.evaluation.summarise
RETRAINING = ("finetune", "scratch_e", "scratch_b")
OF_IMAGES = ("bn_scale", "chip", "fpgm", "hrank")  # criteria of filters, their maps and their norms
NO_ADMM = ("bn_scale", "none")
PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"  # of a name that becomes part of a path; ".." is none
NAME = re.compile(rf"{PART}(/{PART})*")
LONGEST_NAME = 200
NAMED = "parts of letters, digits, '.', '_' and '-' between slashes"
LARGEST_IMAGE, LONGEST_TEXT, MOST_THREADS = 4096, 65_536, 1024


@dataclass
class Model:
    """A network: ``family`` is a module of lpslim.models, ``name`` one that it builds.

    ``floor`` is the share of its channels that every layer keeps, unless it is sensitive. ``weights``:
    start from a checkpoint's file, torchvision's weights of this name, or, for encoders of texts, a name
    of lpslim.models.encoders; null for random ones.
    """

    family: str = MISSING
    name: str = MISSING
    input: str = "image"
    floor: float = 0.0
    weights: str | None = None


@dataclass
class Dataset:
    """A data set: ``source`` is a module of lpslim.data.

    ``rgb`` repeats grey images in three channels; ``workers`` decode the images of a folder, once if they
    then take at most ``store_gb`` GB of disk, else in every epoch. Texts are cut at ``max_length`` tokens;
    ``tokenizer`` is the name of the encoder (lpslim.models.encoders) whose they are.
    """

    name: str = MISSING
    source: str = MISSING
    input: str = "image"
    root: str = "data"
    download: bool = False
    image_size: int = 32
    rgb: bool = False
    val_fraction: float = 0.1
    crop_padding: int = 0
    flip: bool = False
    workers: int = 4
    # read in every epoch, it should stay in memory, as 10 GB do on a machine of 16; Imagenette's are 7.5
    store_gb: float = 10.0
    max_length: int = 128
    tokenizer: str = ""


@dataclass
class Regularizer:
    """The sparsify stage; ``penalty`` is a module of lpslim.sparsity.penalties (ADMM), bn_scale, or none."""

    penalty: str = "lp"
    form: str = "squared"
    updates_per_epoch: int = 1
    train: Recipe = field(default_factory=Recipe)


@dataclass
class Criterion:
    """How channels are scored: ``name`` is a module of lpslim.pruning.criteria, on ``weights`` Z or W.

    ``across`` puts the scores of different layers on one scale. ``widths`` names another criterion
    that decides how many channels a layer keeps; then ``name`` decides only which.
    """

    name: str = "magnitude"
    weights: str = "Z"
    across: str = "minmax"
    widths: str | None = None


@dataclass
class Config:
    """One run. The knobs of the paper stand at the top level; conf/config.yaml explains them."""

    name: str = "adhoc"
    p: float = 5.0
    M: float | None = 1.0
    rho: float = 1.5e-3
    lamb: float = 1e-4
    ratio: float = 0.5
    adjust: float = 0.45
    target_flops: float | None = None
    target_params: float | None = None
    structure: str = "channels"
    round_to: int = 1
    protected: list[str] = field(default_factory=list)
    retrain: str = "finetune"
    seed: int = 0
    selection: str = "last"
    epoch_scale: float = 1.0
    results_dir: str = "results"
    work_dir: str = "outputs"
    dry_run: bool = False
    model: Model = field(default_factory=Model)
    dataset: Dataset = field(default_factory=Dataset)
    regularizer: Regularizer = field(default_factory=Regularizer)
    criterion: Criterion = field(default_factory=Criterion)
    baseline: Recipe = field(default_factory=Recipe)
    finetune: Recipe = field(default_factory=Recipe)
    trainer: Trainer = field(default_factory=Trainer)


def is_name(text: str) -> bool:
    """Return whether a name may become a path below a folder: it cannot climb out of it."""
    return len(text) <= LONGEST_NAME and NAME.fullmatch(text) is not None


def check(config: Config) -> None:
    """Refuse a configuration that cannot work, before anything else is done.

    Raises:
        UserError: one line per fault, with the key, its value and what it may be.
    """
    faults = [*_knobs(config), *_names(config), *_rest(config)]
    for key in ("baseline", "finetune", "regularizer.train"):
        recipe = config.regularizer.train if "." in key else getattr(config, key)
        given = key == "baseline" and config.model.weights is not None and config.retrain == "finetune"
        faults += [f"{key}.{fault}" for fault in _recipe(recipe, fewest=0 if given else 1)]
    if faults:
        raise UserError("\n".join(faults))


def _fault(key: str, value: object, allowed: str) -> str:
    return f"{key}={'null' if value is None else value}: must be {allowed}"


def _one_of(key: str, value: str, allowed: tuple[str, ...] | list[str]) -> Iterator[str]:
    if value not in allowed:
        yield _fault(key, value, f"one of {', '.join(allowed)}")


def _positive(key: str, value: float) -> Iterator[str]:
    if not 0 < value < math.inf:
        yield _fault(key, value, "a positive number")


def _knobs(config: Config) -> Iterator[str]:
    if config.p != 0 and not 1 <= config.p < math.inf:
        yield _fault("p", config.p, "1 or more (the penalty is |z|^(1/p)), or 0 for L0")
    if config.M is not None and not 0 < config.M < math.inf:
        yield _fault("M", config.M, "a positive number, or null for no synaptic inhibition")
    for key in ("rho", "lamb", "epoch_scale"):
        yield from _positive(key, getattr(config, key))
    for key in ("ratio", "adjust"):
        if not 0 <= getattr(config, key) < 1:
            yield _fault(key, getattr(config, key), "at least 0 and below 1")
    if config.target_flops is not None and not 0 < config.target_flops < 1:
        yield _fault("target_flops", config.target_flops, "the share to remove, above 0 and below 1, or null")
    if config.target_params is not None and not 0 < config.target_params < math.inf:
        allowed = "the share to remove, above 0 and below 1, or how many to leave (67e6), or null"
        yield _fault("target_params", config.target_params, allowed)
    if config.target_flops is not None and config.target_params is not None:
        yield _fault("target_params", config.target_params, "null when target_flops is given")
    if not 0 <= config.seed < 2**63:
        yield _fault("seed", config.seed, "0 or more, and below 2^63")


def _names(config: Config) -> Iterator[str]:
    if not is_name(config.name):
        yield _fault("name", config.name, NAMED)
    if not is_name(config.dataset.name) or "/" in config.dataset.name:
        yield _fault("dataset.name", config.dataset.name, "letters, digits, '.', '_' and '-'")
    for key, place in (("results_dir", config.results_dir), ("work_dir", config.work_dir),
                       ("dataset.root", config.dataset.root)):  # fmt: skip
        if not place or "\0" in place:
            yield _fault(key, place, "a folder")
    if config.model.weights == "":
        yield _fault("model.weights", "", "a file, the name of weights, or null")
    yield from _one_of("selection", config.selection, PROTOCOLS)
    yield from _one_of("criterion.name", config.criterion.name, lookup.choices("criteria"))
    yield from _one_of("criterion.weights", config.criterion.weights, SCORED_ON)
    yield from _one_of("criterion.across", config.criterion.across, ACROSS)
    if config.criterion.widths is not None:
        yield from _one_of("criterion.widths", config.criterion.widths, lookup.choices("criteria"))
    yield from _one_of("structure", config.structure, STRUCTURES)
    if config.structure == "weights":
        yield from _single_weights(config)
    yield from _one_of("retrain", config.retrain, RETRAINING)
    yield from _one_of(
        "regularizer.penalty", config.regularizer.penalty, [*lookup.choices("penalties"), *NO_ADMM]
    )
    yield from _one_of("regularizer.form", config.regularizer.form, FORMS)
    yield from _one_of("dataset.source", config.dataset.source, lookup.choices("data"))
    families = lookup.choices("models")
    yield from _one_of("model.family", config.model.family, families)
    if config.model.family in families:
        names = lookup.find("models", config.model.family).NAMES
        if names is not None:
            yield from _one_of("model.name", config.model.name, names)
    if config.model.input == "text":
        yield from _texts(config)
    if config.model.input != config.dataset.input:
        yield (
            f"dataset={config.dataset.name}: gives {config.dataset.input} input, "
            f"but model={config.model.name} reads {config.model.input}"
        )


def _texts(config: Config) -> Iterator[str]:
    """What cannot be done with a network that reads texts."""
    for key, name in (("name", config.criterion.name), ("widths", config.criterion.widths)):
        if name in OF_IMAGES:
            yield _fault(f"criterion.{key}", name, "magnitude or random for an encoder of texts")
    if config.regularizer.penalty == "bn_scale":
        yield _fault("regularizer.penalty", "bn_scale", "another: an encoder of texts has no batch-norm")
    if config.dataset.input == "text" and not config.dataset.tokenizer:
        yield _fault("dataset.tokenizer", "''", "the name of the encoder whose tokens the texts become")


def _single_weights(config: Config) -> Iterator[str]:
    for key, value, allowed in (
        ("criterion.name", config.criterion.name, "magnitude"),
        ("criterion.widths", config.criterion.widths, None),
        ("round_to", config.round_to, 1),
        ("protected", list(config.protected), []),
        ("retrain", config.retrain, "finetune"),
    ):
        if value != allowed:
            yield _fault(key, value, f"{'null' if allowed is None else allowed} with structure=weights")


def _rest(config: Config) -> Iterator[str]:
    if config.round_to < 1:
        yield _fault("round_to", config.round_to, "1 or more channels")
    if config.regularizer.updates_per_epoch < 1:
        yield _fault("regularizer.updates_per_epoch", config.regularizer.updates_per_epoch, "1 or more")
    if not 0 <= config.model.floor < 1:
        yield _fault("model.floor", config.model.floor, "at least 0 and below 1")
    if not 0 < config.dataset.val_fraction < 1:
        yield _fault("dataset.val_fraction", config.dataset.val_fraction, "above 0 and below 1")
    if config.dataset.source == "digits" and (config.dataset.image_size % 8 or config.dataset.image_size < 8):
        yield _fault("dataset.image_size", config.dataset.image_size, "a multiple of 8 for the digits")
    for key, least, most, unit in (
        ("image_size", 1, LARGEST_IMAGE, "pixels"), ("max_length", 2, LONGEST_TEXT, "tokens"),
        ("crop_padding", 0, LARGEST_IMAGE, "pixels"), ("workers", 0, MOST_THREADS, "processes"),
    ):  # fmt: skip
        if not least <= getattr(config.dataset, key) <= most:
            yield _fault(f"dataset.{key}", getattr(config.dataset, key), f"{least} to {most} {unit}")
    if not 0 <= config.dataset.store_gb < math.inf:
        yield _fault("dataset.store_gb", config.dataset.store_gb, "0 or more GB")
    yield from _one_of("trainer.device", config.trainer.device, DEVICES)
    yield from _one_of("trainer.precision", config.trainer.precision, PRECISIONS)
    if config.trainer.cuda_graphs and not config.trainer.compile:
        yield _fault("trainer.cuda_graphs", "true", "false or null unless trainer.compile=true")
    if config.trainer.cuda_graphs and config.trainer.device == "cpu":
        yield _fault("trainer.cuda_graphs", "true", "false or null with trainer.device=cpu")
    if config.trainer.threads is not None and not 1 <= config.trainer.threads <= MOST_THREADS:
        allowed = f"1 to {MOST_THREADS}, or null for PyTorch's choice"
        yield _fault("trainer.threads", config.trainer.threads, allowed)
    minutes = config.trainer.checkpoint_minutes
    if minutes is not None and not 0 <= minutes < math.inf:
        yield _fault("trainer.checkpoint_minutes", minutes, "0 or more, or null for no checkpoints")


def _recipe(recipe: Recipe, fewest: int) -> Iterator[str]:
    for key, least in (("epochs", fewest), ("batch_size", 1)):
        if getattr(recipe, key) < least:
            yield _fault(key, getattr(recipe, key), f"{least} or more")
    yield from _positive("lr", recipe.lr)
    yield from _one_of("schedule", recipe.schedule, SCHEDULES)
    yield from _one_of("optimizer", recipe.optimizer, OPTIMIZERS)
    if recipe.clip_norm is not None:
        yield from _positive("clip_norm", recipe.clip_norm)
    for key in ("momentum", "label_smoothing"):
        if not 0 <= getattr(recipe, key) < 1:
            yield _fault(key, getattr(recipe, key), "at least 0 and below 1")
    if not 0 <= recipe.weight_decay < math.inf:
        yield _fault("weight_decay", recipe.weight_decay, "0 or more")
    if recipe.epochs > 0 and not 0 <= recipe.warmup_epochs < recipe.epochs:
        yield _fault("warmup_epochs", recipe.warmup_epochs, f"0 or more, and below epochs={recipe.epochs}")
    if recipe.milestones != sorted(recipe.milestones) or not all(0 < m < 1 for m in recipe.milestones):
        yield _fault("milestones", recipe.milestones, "shares of the epochs, between 0 and 1, in order")
