"""Stage keys: the stages of a run in order, and the hashes that their results are stored under.

The key of a stage covers the settings it depends on, the keys of the stages it reads, the version of its code
and the seed. Its group is the same hash along the whole chain without the seed.
"""

from dataclasses import asdict, dataclass, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lpslim.base import files, registry
from lpslim.base.hashing import digest
from lpslim.data.splits import Data
from lpslim.experiment.config import Config
from lpslim.experiment.records import RULE, VERSIONS
from lpslim.models import family as families
from lpslim.pruning.budget import Budget
from lpslim.training.callbacks import Regularizer
from lpslim.training.schedule import TrainConfig, scaled

ARITHMETIC = ("precision", "channels_last", "compile")  # settings of the runtime that change a result
AUGMENTATION = ("val_fraction", "crop_padding", "flip")  # settings of the data that change a result
LENGTH = 16  # hexadecimal digits of a key
Info = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """Planned stage: its key and group, what it depends on, and the folder of its result."""

    name: str
    key: str
    group: str
    depends_on: Info
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
        """Epochs of training, before scratch_b lengthens them; 0 for a stage that trains nothing."""
        return int(self.depends_on.get("train", {}).get("epochs", 0))

    def info(self) -> Info:
        """Return what the finished stage says of itself."""
        content: Info = files.read_json(self.folder / files.MANIFEST)
        return content


def plan(config: Config, data: Data) -> dict[str, Step]:
    """Return the stages of a run in order, without computing anything.

    The trunk is baseline, sparsify, prune, finetune; the scores that ``prune`` reads hang beside it.

    Raises:
        UserError: pretrained weights are not there, or a plug-in does not know an option.
    """
    steps: dict[str, Step] = {}
    trunk: list[Step] = []
    for name, depends_on in _settings(config, data).items():
        scores = [steps[score] for score in ("layer_budget", "score") if score in steps]
        parents = [*trunk, *scores] if name == "prune" else trunk
        stage = "score" if name == "layer_budget" else name  # one store for both
        identity = {"stage": stage, "version": VERSIONS[name], "depends_on": depends_on}
        key = digest({**identity, "parents": [p.key for p in parents], "seed": config.seed})[:LENGTH]
        group = digest({**identity, "parents": [p.group for p in parents]})[:LENGTH]
        steps[name] = Step(name, key, group, depends_on, Path(config.work_dir) / "stages" / stage / key)
        trunk = trunk if stage == "score" else [steps[name]]
    return steps


def trainings(config: Config) -> dict[str, TrainConfig]:
    """Return how each stage of a run trains, its epochs scaled; before scratch_b lengthens them."""
    last, epochs = config.finetune, config.scratch.epochs
    if config.retrain != "finetune":
        last = config.baseline if epochs is None else replace(config.baseline, epochs=epochs)
    sparsify = {} if config.regularizer.name == "none" else {"sparsify": config.regularizer.train}
    dense, last = (scaled(train, config.epoch_scale) for train in (config.baseline, last))
    return {"baseline": dense, **sparsify, "finetune": last}


def budget(config: Config) -> Budget:
    """Return how much is to be removed."""
    return Budget(config.ratio, config.target_flops, config.target_params, config.round_to)


def regularizer(config: Config) -> tuple[partial[Regularizer], Info]:
    """Return the regulariser, still to be called with the model, and what a key holds of it.

    Of a penalty that is a dataclass a key holds its fields, so that ``ratio`` is no part of an Lp penalty.

    Raises:
        UserError: it or its penalty does not know an option.
    """
    chosen = config.regularizer
    build = registry.find("sparsity.penalties", chosen.penalty).build
    knobs: Info = {"p": config.p, "M": config.M, "ratio": config.ratio}
    options = registry.arguments(build, knobs, chosen.penalty_options, "regularizer.penalty_options")
    penalty = build(**options)
    values = asdict(penalty) if is_dataclass(penalty) else options  # type: ignore[arg-type]

    build = registry.find("training.regularizers", chosen.name).build
    knobs = {"lamb": config.lamb, "rho": config.rho, "form": chosen.form, "penalty": penalty,
             "updates_per_epoch": chosen.updates_per_epoch, "model": None}  # fmt: skip
    arguments = registry.arguments(build, knobs, chosen.options, "regularizer.options")
    del arguments["model"]
    held = {**_plug_in("training.regularizers", chosen.name), "arguments": dict(arguments)}
    if "penalty" in arguments:
        held["arguments"]["penalty"] = {**_plug_in("sparsity.penalties", chosen.penalty), "values": values}
    return partial(build, **arguments), held


def method(config: Config) -> dict[str, str]:
    """Return the method's name in tables, and its kind: ADMM, rival, control or unstructured."""
    criterion, control = config.criterion, config.retrain != "finetune" or config.criterion.layer_budget_from
    scored = f"{criterion.name} ({criterion.score_norm})"
    name, kind = "no ADMM", "control" if criterion.name in ("magnitude", "random") else "rival"
    if config.regularizer.name != "none":
        penalty = regularizer(config)[0].keywords.get("penalty")
        name = str(penalty or config.regularizer.name.upper().replace("_", "-"))
        kind = "ADMM" if penalty else "rival"
    name += "" if scored == "magnitude (minmax)" else f", {scored}"
    name += "" if config.retrain == "finetune" else f", {config.retrain}"
    kind = "unstructured" if config.granularity == "weights" else "control" if control else kind
    return {"method": config.label or name, "kind": config.kind or kind}


def _settings(config: Config, data: Data) -> dict[str, Info]:
    """Return per stage what its result depends on, beyond the stages it reads and the seed."""
    model, criterion, family = config.model, config.criterion, families.get(config.model.family)
    baseline = {
        "family": _plug_in("models.families", model.family),
        "model": {"name": model.name, **family.arguments(model.name, data.shape)},
        "weights": family.weights_identity(model.name, model.weights) if model.weights else None,
        "data": {"fingerprint": data.fingerprint, "shape": list(data.shape), "reading": data.reading},
        "source": registry.source_hash("data.datasets", config.dataset.source),
        "augmentation": {key: getattr(config.dataset, key) for key in AUGMENTATION},
    }
    sparsify = {} if config.regularizer.name == "none" else {"sparsify": regularizer(config)[1]}
    scored: Info = {"weights": criterion.weights if sparsify else "W"}
    targets = {"target_flops": config.target_flops, "target_params": config.target_params}
    target = {key: value for key, value in targets.items() if value is not None} or {"ratio": config.ratio}
    prune: Info = {"rule": RULE, "granularity": config.granularity, "budget": target}
    scores: dict[str, Info] = {}
    if config.granularity == "weights":
        prune |= scored
    else:
        prune |= {"adjust": config.adjust, "floor": model.floor, "round_to": config.round_to}
        prune |= {"score_norm": criterion.score_norm}
        for stage, name in (("layer_budget", criterion.layer_budget_from), ("score", criterion.name)):
            if name:
                scored |= {"protected": list(config.protected)}
                scores[stage] = {**_plug_in("pruning.criteria", name), **scored}
    finetune: Info = {"retrain": config.retrain}
    settings = {"baseline": baseline, **sparsify, **scores, "prune": prune, "finetune": finetune}
    runtime = {key: getattr(config.trainer, key) for key in ARITHMETIC}
    for stage, train in trainings(config).items():
        settings[stage] |= {"train": asdict(train), "runtime": runtime}
    return settings


def _plug_in(package: str, name: str) -> Info:
    return {"name": name, "code": registry.source_hash(package, name)}
