"""The stages of a run, in order, with the keys that their results are stored under.

A stage's key covers the settings it depends on, its parent's key and the version of its code
(lpslim.experiment.versions).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lpslim.base import files, registry
from lpslim.base.hashing import stage_key
from lpslim.data.splits import Data
from lpslim.experiment.config import Config, Model
from lpslim.experiment.versions import VERSIONS
from lpslim.models import weights
from lpslim.models.storage import Architecture
from lpslim.sparsity.penalties import Penalty
from lpslim.training.schedule import Recipe, scaled

# Settings that came after the first results were stored: at these values they change no key
NEUTRAL: dict[str, Any] = {
    "across": "minmax", "widths": None, "round_to": 1, "structure": "channels", "weights_from": None,
    "configuration": None, "protected": [], "optimizer": "sgd", "clip_norm": None,
    "cuda_graphs": False,
}  # fmt: skip
# How the streamed images of the first stored results were read: it changes no key either
FIRST_READING = {"image_size": 64, "workers": 2}
ARITHMETIC = ("precision", "channels_last", "compile", "cuda_graphs")  # of the trainer's settings
Info = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """A stage as planned: what it depends on, the key that follows, and its folder."""

    name: str
    key: str
    depends_on: dict[str, Any]
    folder: Path

    @property
    def done(self) -> bool:
        """Whether the stage has been computed."""
        return self.folder.exists()

    @property
    def lock(self) -> Path:
        """The file that a process locks while it computes the stage."""
        return self.folder.with_suffix(".lock")

    @property
    def epochs(self) -> int:
        """Epochs of training, before a scratch-B run is lengthened; 0 for a stage that trains nothing."""
        return int(self.depends_on.get("recipe", {}).get("epochs", 0))

    def info(self) -> Info:
        """Return what the finished stage says of itself."""
        content: Info = store.read_json(self.folder / store.MANIFEST)
        return content


def plan(config: Config, data: Data) -> dict[str, Step]:
    """Return the stages of a run in order, without doing anything.

    ``score`` (and ``widths``, the scores that decide how many channels a layer keeps where another
    criterion decides which) hang beside the trunk baseline - sparsify - prune - finetune.

    Raises:
        UserError: the baseline's initial weights are not there.
    """
    steps: dict[str, Step] = {}
    trunk = None
    for name, depends_on in _settings(config, data).items():
        stage = "score" if name == "widths" else name
        key = stage_key(stage, VERSIONS[stage], depends_on, trunk)
        steps[name] = Step(name, key, depends_on, Path(config.work_dir) / "stages" / stage / key)
        trunk = trunk if stage == "score" else key
    return steps


def _settings(config: Config, data: Data) -> dict[str, dict[str, Any]]:
    """Return per stage what its result depends on: what is computed, not where or how fast."""
    common = {
        "trainer": departing({key: getattr(config.trainer, key) for key in ARITHMETIC}),
        "seed": config.seed,
    }
    settings = {"baseline": {**_baseline(config, data), **common}}
    if config.regularizer.penalty != "none":
        settings["sparsify"] = {**_sparsify(config), **common}
    if config.structure == "channels":
        if config.criterion.widths:
            settings["widths"] = _score(config, config.criterion.widths)
        settings["score"] = _score(config, config.criterion.name)
    settings["prune"] = _prune(config)
    settings["finetune"] = {**_finetune(config), **common}
    return settings


def _baseline(config: Config, data: Data) -> dict[str, Any]:
    model, augmentation = config.model, ("val_fraction", "crop_padding", "flip")
    family = lookup.find("models", model.family)
    source = None
    if model.weights and hasattr(family, "identity"):
        source = family.identity(model.weights)
    elif model.weights:
        source = checkpoints.identity(model.weights, torchvision_name(model))
    configuration = family.configuration(model.name) if hasattr(family, "configuration") else None
    return {
        "model": {
            "family": model.family,
            "name": model.name,
            **departing({"weights_from": source, "configuration": configuration}),
        },
        "data": {
            "fingerprint": data.fingerprint,
            **({"reading": data.reading} if data.reading not in ({}, FIRST_READING) else {}),
            **{key: getattr(config.dataset, key) for key in augmentation},
        },
        **_recipe(config.baseline, config),
    }


def _sparsify(config: Config) -> dict[str, Any]:
    chosen = config.regularizer
    recipe = _recipe(chosen.train, config)
    if chosen.penalty == "bn_scale":
        return {"penalty": {"name": chosen.penalty}, "lamb": config.lamb, **recipe}
    return {
        "penalty": {"name": chosen.penalty, **asdict(penalty(config))},  # type: ignore[call-overload]
        **{key: getattr(config, key) for key in ("lamb", "rho")},
        **{key: getattr(chosen, key) for key in ("form", "updates_per_epoch")},
        **recipe,
    }


def _score(config: Config, name: str) -> dict[str, Any]:
    scored_on = {"weights": config.criterion.weights} if has_z(config) else {}
    return {"criterion": name, **scored_on, **departing({"protected": config.protected})}


def _prune(config: Config) -> dict[str, Any]:
    targets = {key: getattr(config, key) for key in ("target_flops", "target_params")}
    budget = {key: value for key, value in targets.items() if value is not None}
    return {
        "criterion": departing(asdict(config.criterion)),
        "budget": budget or {"ratio": config.ratio},
        "floors": {"adjust": config.adjust, "floor": config.model.floor},
        **departing({key: getattr(config, key) for key in ("round_to", "structure", "protected")}),
    }


def _finetune(config: Config) -> dict[str, Any]:
    recipe = _recipe(last_recipe(config), config)
    return recipe if config.retrain == "finetune" else {**recipe, "retrain": config.retrain}


def _recipe(recipe: Recipe, config: Config) -> dict[str, Any]:
    return {"recipe": departing(asdict(scaled(recipe, config.epoch_scale)))}


def departing(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings without those at their neutral value."""
    return {key: value for key, value in settings.items() if key not in NEUTRAL or value != NEUTRAL[key]}


def architecture_of(model: Model, data: Data) -> Architecture:
    """Return the dense network for these data, undetermined but for its weights.

    Raises:
        UserError: its configuration cannot be found.
    """
    family = lookup.find("models", model.family)
    arguments: dict[str, Any] = {"num_classes": data.num_classes}
    if hasattr(family, "configuration"):
        arguments["configuration"] = family.configuration(model.name)
    else:
        arguments["in_channels"] = data.shape[0]
    return Architecture(model.family, model.name, data.shape, arguments)


def torchvision_name(model: Model) -> str:
    """Return the name under which torchvision may have weights of this network, else an empty one."""
    family = lookup.find("models", model.family)
    return model.name if getattr(family, "FROM_TORCHVISION", False) else ""


def last_recipe(config: Config) -> Recipe:
    """Return how the pruned network is trained: the fine-tune's recipe, or from scratch the baseline's."""
    return config.finetune if config.retrain == "finetune" else config.baseline


def recipes(config: Config) -> dict[str, Recipe]:
    """Return the recipes that a run trains by, named as the configuration names them."""
    found = {"baseline": config.baseline}
    if config.regularizer.penalty != "none":
        found["regularizer.train"] = config.regularizer.train
    if config.retrain == "finetune":
        found["finetune"] = config.finetune
    return {key: recipe for key, recipe in found.items() if recipe.epochs}


def penalty(config: Config) -> Penalty:
    """Return the ADMM's penalty."""
    built: Penalty = lookup.find("penalties", config.regularizer.penalty).build(
        config.p, config.M, config.ratio
    )
    return built


def has_z(config: Config) -> bool:
    """Return whether the sparsify stage leaves a sparse copy Z."""
    return config.regularizer.penalty not in ("none", "bn_scale")
