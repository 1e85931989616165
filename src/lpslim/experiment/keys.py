"""Stage keys: the stages of a run in order, and the hashes that their results are stored under.

The key of a stage covers the settings it depends on, the keys of the stages it reads, the version of its code
and the seed. Its group is the same hash along the whole chain without the seed.
"""

from dataclasses import asdict, dataclass, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lpslim.base import files, registry
from lpslim.base.errors import UserError
from lpslim.base.files import digest
from lpslim.data.splits import Data
from lpslim.experiment.config import Config, declared
from lpslim.experiment.records import RULE, VERSIONS
from lpslim.models import family as families
from lpslim.pruning.budget import Budget
from lpslim.training.callbacks import Regularizer
from lpslim.training.schedule import SharedSchedule, TrainConfig, scaled

AUGMENTATION = ("val_fraction", "crop_padding", "flip")  # settings of the data that change a result
LENGTH = 16  # hexadecimal digits of a key
LATE = ("model", "example", "candidates", "measure")  # what a regulariser is given when the network is there
Info = dict[str, Any]


@dataclass(frozen=True)
class PlannedStage:
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


def plan(config: Config, data: Data) -> dict[str, PlannedStage]:
    """Return the stages of a run in order, without computing anything.

    Each of baseline, sparsify, prune and finetune reads the one before it; prune also reads the scores.
    UserError if pretrained weights are not there, or a plug-in does not know an option.
    """
    steps: dict[str, PlannedStage] = {}
    before: list[PlannedStage] = []
    for name, depends_on in _settings(config, data).items():
        scores = [steps[score] for score in ("layer_budget", "score") if score in steps]
        parents = [*before, *scores] if name == "prune" else before
        stage = "score" if name == "layer_budget" else name  # one store for both
        identity = {"stage": stage, "version": VERSIONS[name], "depends_on": depends_on}
        key = digest({**identity, "parents": [p.key for p in parents], "seed": config.seed})[:LENGTH]
        group = digest({**identity, "parents": [p.group for p in parents]})[:LENGTH]
        steps[name] = PlannedStage(
            name, key, group, depends_on, Path(config.work_dir) / "stages" / stage / key
        )
        before = before if stage == "score" else [steps[name]]
    return steps


def trainings(config: Config) -> dict[str, TrainConfig]:
    """Return how each stage of a run trains, its epochs scaled; before scratch_b lengthens them.

    With ``equal_epochs`` a fine-tune whose weights come from no sparsify stage gets that stage's epochs too.
    """
    keeps_weights = config.retrain in ("finetune", "rewind")
    last = config.finetune
    if not keeps_weights:  # from scratch, as the dense network was trained
        epochs = config.scratch.epochs
        last = config.baseline if epochs is None else replace(config.baseline, epochs=epochs)
    dense, last = (scaled(train, config.epoch_scale) for train in (config.baseline, last))
    sparsify = {} if config.regularizer.name == "none" else {"sparsify": config.regularizer.train}
    sparsify_epochs = config.regularizer.train.epochs
    shares_schedule = sparsify and keeps_weights and config.regularizer.one_schedule
    if shares_schedule:
        first = {**asdict(last), "epochs": sparsify_epochs}
        sparsify = {"sparsify": SharedSchedule(**first, after=last.epochs)}
    if sparsify and config.retrain == "finetune":  # goes on with the weights of sparsify
        last = SharedSchedule(**asdict(last), before=sparsify_epochs) if shares_schedule else last
    elif keeps_weights and config.equal_epochs and last.epochs:
        last = replace(last, epochs=last.epochs + sparsify_epochs)
    return {"baseline": dense, **sparsify, "finetune": last}


def budget(config: Config) -> Budget:
    """Return how much is to be removed."""
    return Budget(config.ratio, config.target_flops, config.target_params, config.round_to)


def regularizer(config: Config) -> tuple[partial[Regularizer], Info]:
    """Return the regulariser, still to be called with the model, and what a key holds of it.

    Of a penalty that is a dataclass a key holds its fields, so that ``ratio`` is no part of an Lp penalty.
    UserError if the regulariser or its penalty does not know an option.
    """
    chosen = config.regularizer
    build = registry.find("sparsity.penalties", chosen.penalty).build
    knobs: Info = {"p": config.p, "M": config.M, "ratio": config.ratio}
    options = registry.arguments(build, knobs, chosen.penalty_options, "regularizer.penalty_options")
    try:
        penalty = build(**options)
    except (TypeError, ValueError) as problem:
        raise UserError(f"regularizer.penalty_options: {problem}") from problem
    values = asdict(penalty) if is_dataclass(penalty) else options  # type: ignore[arg-type]

    build = registry.find("training.regularizers", chosen.name).build
    knobs = {"lamb": config.lamb, "rho": config.rho, "form": chosen.form, "penalty": penalty, "p": config.p,
             "M": config.M, "updates_per_epoch": chosen.updates_per_epoch, "epochs": chosen.train.epochs,
             "budget": budget(config), **dict.fromkeys(LATE)}  # fmt: skip
    arguments = registry.arguments(build, knobs, chosen.options, "regularizer.options")
    arguments = {name: value for name, value in arguments.items() if name not in LATE}
    held = dict(arguments)
    if "budget" in held:
        held["budget"] = _target(config)
    if "penalty" in held:
        held["penalty"] = {**_plug_in("sparsity.penalties", chosen.penalty), "values": values}
    return partial(build, **arguments), {**_plug_in("training.regularizers", chosen.name), "arguments": held}


def method(config: Config) -> dict[str, str]:
    """Return the method's name in tables, and its kind: ADMM, rival, control or unstructured."""
    criterion = config.criterion
    name, kind = "no ADMM", "control" if criterion.name in ("magnitude", "random") else "rival"
    if config.regularizer.name != "none":
        penalty = regularizer(config)[0].keywords.get("penalty")
        name = str(penalty or config.regularizer.name.upper().replace("_", "-"))
        kind = "ADMM" if penalty else "rival"
    parts = [name, f"{criterion.name} ({criterion.score_norm})", config.retrain]
    parts += ["coupled"] if config.coupled else []
    name = ", ".join(part for part in parts if part not in ("magnitude (minmax)", "finetune"))
    if config.granularity == "weights":
        kind = "unstructured"
    elif config.retrain != "finetune" or criterion.layer_budget_from:
        kind = "control"
    return {"method": config.label or name, "kind": config.kind or kind}


def _settings(config: Config, data: Data) -> dict[str, Info]:
    """Return per stage what its result depends on, beyond the stages it reads and the seed."""
    model, criterion, family = config.model, config.criterion, families.get(config.model.family)
    sparsify = {} if config.regularizer.name == "none" else {"sparsify": regularizer(config)[1]}
    scored, single = {"weights": criterion.weights if sparsify else "W"}, config.granularity == "weights"
    chosen = "budget" in sparsify.get("sparsify", {}).get("arguments", {})  # the regulariser meets it itself
    if single and chosen:
        raise UserError(f"granularity=weights: must be channels with regularizer={config.regularizer.name}")
    names = {} if single or chosen else {"layer_budget": criterion.layer_budget_from, "score": criterion.name}
    joint: Info = {"coupled": True} if config.coupled else {}  # older keys have none
    scores = {stage: {**_plug_in("pruning.criteria", name), **scored, "protected": list(config.protected),
                      **joint}
              for stage, name in names.items() if name}  # fmt: skip
    widths = {"adjust": config.adjust, "floor": model.floor, "round_to": config.round_to,
              "score_norm": criterion.score_norm,
              **(joint and {**joint, "coupled_floor": config.coupled_floor, "of": "highest"})}  # fmt: skip
    if chosen:
        sparsify["sparsify"] |= {**widths, "protected": list(config.protected)}
    settings: dict[str, Info] = {
        "baseline": {
            "family": _plug_in("models.families", model.family),
            "model": {"name": files.called(model.name), **family.arguments(model.name, data.shape)},
            "weights": family.weights_identity(model.name, model.weights) if model.weights else None,
            "data": {"fingerprint": data.fingerprint, "shape": list(data.shape), "reading": data.reading},
            "source": registry.source_hash("data.datasets", config.dataset.source),
            "augmentation": {key: getattr(config.dataset, key) for key in AUGMENTATION},
        },
        **sparsify,
        **scores,
        "prune": {"rule": RULE, "granularity": config.granularity, "budget": _target(config),
                  **(scored if single else widths)},
        "finetune": {"retrain": config.retrain},
    }  # fmt: skip
    runtime = {key: value for key, value, field in declared(config.trainer) if not field.get("ignored")}
    for stage, train in trainings(config).items():
        settings[stage] |= {"train": asdict(train), "runtime": runtime}
    return settings


def _target(config: Config) -> Info:
    targets = {"target_flops": config.target_flops, "target_params": config.target_params}
    return {key: value for key, value in targets.items() if value is not None} or {"ratio": config.ratio}


def _plug_in(package: str, name: str) -> Info:
    return {"name": name, "code": registry.source_hash(package, name)}
