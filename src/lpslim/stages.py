"""The pipeline: baseline, sparsify, prune, finetune. Each stage is found, or made once.

A stage's key covers the settings it depends on, its parent's key and the version of its
code below. Raise a version when a change alters that stage's results.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from lpslim import architecture, lookup, selection, store, surgery
from lpslim.architecture import Architecture
from lpslim.config import Config
from lpslim.cost import CostModel, layer_costs
from lpslim.errors import UserError
from lpslim.evaluation import evaluate, summarise
from lpslim.images import ImageData
from lpslim.keys import derive_seed, stage_key
from lpslim.recipe import Recipe, scaled
from lpslim.sparsify import Sparsifier
from lpslim.training import Hooks, fit, make_accelerator
from lpslim.units import Units

log = logging.getLogger(__name__)

VERSIONS = {"baseline": 1, "sparsify": 1, "prune": 1, "finetune": 1}
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

    def info(self) -> Info:
        """Return what the finished stage says of itself."""
        content: Info = store.read_json(self.folder / "stage.json")
        return content


def plan(config: Config, data: ImageData) -> dict[str, Step]:
    """Return the stages of a run in order, without doing anything."""
    steps: dict[str, Step] = {}
    parent = None
    for name, depends_on in _settings(config, data).items():
        parent = stage_key(name, VERSIONS[name], depends_on, parent)
        steps[name] = Step(name, parent, depends_on, Path(config.work_dir) / "stages" / name / parent)
    return steps


def _settings(config: Config, data: ImageData) -> dict[str, dict[str, Any]]:
    """Return per stage what its result depends on: what is computed, not where or how fast."""
    common = {
        "trainer": {key: getattr(config.trainer, key) for key in ("precision", "channels_last", "compile")},
        "seed": config.seed,
    }
    factor = config.epoch_scale
    augmentation = {key: getattr(config.dataset, key) for key in ("val_fraction", "crop_padding", "flip")}
    settings: dict[str, dict[str, Any]] = {
        "baseline": {
            "model": {"family": config.model.family, "name": config.model.name},
            "data": {"fingerprint": data.fingerprint, **augmentation},
            "recipe": asdict(scaled(config.baseline, factor)),
            **common,
        }
    }
    if config.regularizer.penalty != "none":
        settings["sparsify"] = {
            "penalty": {"name": config.regularizer.penalty, **asdict(_penalty(config))},
            **{key: getattr(config, key) for key in ("lamb", "rho")},
            **{key: getattr(config.regularizer, key) for key in ("form", "updates_per_epoch")},
            "recipe": asdict(scaled(config.regularizer.train, factor)),
            **common,
        }
    targets = {key: getattr(config, key) for key in ("target_flops", "target_params")}
    budget = {key: value for key, value in targets.items() if value is not None}
    settings["prune"] = {
        "criterion": asdict(config.criterion),
        "budget": budget or {"ratio": config.ratio},
        "floors": {"adjust": config.adjust, "floor": config.model.floor},
    }
    settings["finetune"] = {"recipe": asdict(scaled(config.finetune, factor)), **common}
    return settings


def _penalty(config: Config) -> Any:
    family = lookup.find("penalties", config.regularizer.penalty)
    return family.build(config.p, config.M, config.ratio)


def survey(config: Config, model: nn.Module, data: ImageData) -> tuple[list[Units], CostModel, list[int]]:
    """Return the dense network's prunable units, what fewer of them cost, and their floors."""
    example = torch.zeros(1, *data.shape)
    family = lookup.find("models", config.model.family)
    units = surgery.find_units(model, example, family.prunable(model))
    cost = CostModel(layer_costs(model, example), units, sum(p.numel() for p in model.parameters()))
    return units, cost, selection.floors(units, adjust=config.adjust, floor=config.model.floor)


def check_target(config: Config, data: ImageData) -> None:
    """Refuse, before anything is trained, images that do not fit or a target beyond the floors.

    Raises:
        UserError: with what does not fit, or the range that can be reached.
    """
    try:
        _, cost, least = survey(config, _described(config, data).build(), data)
    except RuntimeError as problem:  # too small for its poolings, say
        raise UserError(
            f"model={config.model.name}: does not take images {data.shape}: {problem}"
        ) from problem
    for key, drop in (("target_flops", cost.flops_drop), ("target_params", cost.params_drop)):
        target = getattr(config, key)
        if target is not None and target > drop(least) + selection.TOLERANCE:
            raise UserError(
                f"{key}={target}: must be at most {drop(least):.4f}: with these floors "
                f"(adjust={config.adjust}, model.floor={config.model.floor}, one channel a layer) "
                "no more can be removed"
            )


def _described(config: Config, data: ImageData) -> Architecture:
    arguments = {"num_classes": data.num_classes, "in_channels": data.shape[0]}
    return Architecture(config.model.family, config.model.name, data.shape, arguments)


@dataclass(frozen=True)
class Pipeline:
    """One run on loaded data; ``writer`` takes the scalars of every epoch."""

    config: Config
    data: ImageData
    steps: dict[str, Step]
    writer: SummaryWriter

    def run(self) -> dict[str, Info]:
        """Find or make every stage, in order; return what each says of itself."""
        makers = {"baseline": self._baseline, "sparsify": self._sparsify,
                  "prune": self._prune, "finetune": self._finetune}  # fmt: skip
        parent: Step | None = None
        infos = {}
        for name, step in self.steps.items():
            infos[name] = self._obtain(step, parent, makers[name])
            parent = step
        return infos

    def _obtain(self, step: Step, parent: Step | None, make: Callable[[Path, Path], Info]) -> Info:
        with store.locked(step.folder.with_suffix(".lock")):
            if step.done:
                log.info("%s %s: found, not computed again", step.name, step.key)
                for row in step.info().get("curve", []):
                    self._chart(step.name, row)
            else:
                with store.new_folder(step.folder) as scratch:
                    began = time.perf_counter()
                    info = make(scratch, parent.folder if parent else scratch)
                    info["seconds"] = time.perf_counter() - began
                    store.write_json(scratch / "stage.json", {**info, "depends_on": step.depends_on})
        return step.info()

    def _fit(self, model: nn.Module, stage: str, recipe: Recipe, hooks: Hooks | None = None) -> Info:
        curve = fit(
            model, self.data, scaled(recipe, self.config.epoch_scale), self.config.trainer,
            seed=self.config.seed, stage=stage, hooks=hooks,
            after_epoch=lambda row: self._chart(stage, row),
        )  # fmt: skip
        return {"curve": curve, "accuracy": summarise(curve)}

    def _chart(self, stage: str, row: dict[str, float]) -> None:
        for name, value in row.items():
            if name not in ("epoch", "seconds"):
                self.writer.add_scalar(f"{stage}/{name}", value, int(row["epoch"]))

    def _baseline(self, folder: Path, _: Path) -> Info:
        """Train the dense network from scratch."""
        torch.manual_seed(derive_seed(self.config.seed, "initial weights"))
        described = _described(self.config, self.data)
        model = described.build()
        info = self._fit(model, "baseline", self.config.baseline)
        architecture.save(folder, model, described)
        return info

    def _sparsify(self, folder: Path, parent: Path) -> Info:
        """Pull the weights towards a sparse Z by ADMM; keep the network with W, and with Z."""
        config, chosen = self.config, self.config.regularizer
        model, described = architecture.load(parent), architecture.describe(parent)
        sparsifier = Sparsifier(
            model, _penalty(config), lamb=config.lamb, rho=config.rho,
            form=chosen.form, updates_per_epoch=chosen.updates_per_epoch,
        )  # fmt: skip
        info = self._fit(model, "sparsify", chosen.train, sparsifier)
        architecture.save(folder, model, described)
        (folder / "Z").mkdir()
        model.load_state_dict({**model.state_dict(), **sparsifier.sparse()})
        architecture.save(folder / "Z", model, described)
        return {**info, "convergence": sparsifier.convergence}

    def _prune(self, folder: Path, parent: Path) -> Info:
        """Score, select and remove; the weights are W's, the scores those of W or of Z."""
        config = self.config
        described = architecture.describe(parent)
        model = architecture.load(parent)
        scored = architecture.load(parent / "Z") if _scores_on_z(config, parent) else model
        units, cost, least = survey(config, model, self.data)
        scores = lookup.find("criteria", config.criterion.name).score(scored, units)
        if config.target_flops is not None:
            kept = selection.by_target(units, scores, least, config.target_flops, cost.flops_drop)
        elif config.target_params is not None:
            kept = selection.by_target(units, scores, least, config.target_params, cost.params_drop)
        else:
            kept = selection.by_ratio(units, scores, least, config.ratio)
        surgery.prune(model, torch.zeros(1, *self.data.shape), kept)
        described = Architecture(**{**vars(described), "kept": kept})
        architecture.save(folder, model, described)
        widths = [len(kept[each.layer]) for each in units]
        device = make_accelerator(config.trainer).device
        return {
            "channels": {each.layer: [n, each.size] for each, n in zip(units, widths, strict=True)},
            "dense": asdict(cost.dense),
            "pruned": asdict(cost(widths)),
            "flops_drop": 100 * cost.flops_drop(widths),
            "params_drop": 100 * cost.params_drop(widths),
            "accuracy": {"last": evaluate(model.to(device), self.data.test.to(device))["accuracy"]},
        }

    def _finetune(self, folder: Path, parent: Path) -> Info:
        """Train the smaller network."""
        model, described = architecture.load(parent), architecture.describe(parent)
        info = self._fit(model, "finetune", self.config.finetune)
        architecture.save(folder, model, described)
        return info


def _scores_on_z(config: Config, parent: Path) -> bool:
    return config.criterion.weights == "Z" and (parent / "Z").is_dir()
