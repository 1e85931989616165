"""The pipeline: baseline, sparsify, score, prune, finetune. Each stage is found, or made once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from lpslim import architecture, checkpoints, lookup, masking, selection, store, surgery
from lpslim.architecture import Architecture
from lpslim.config import Config
from lpslim.cost import Cost, CostModel, layer_costs
from lpslim.errors import UserError
from lpslim.evaluation import PROTOCOLS, evaluate, summarise
from lpslim.images import ImageData
from lpslim.keys import derive_seed
from lpslim.plan import Info, Step, last_recipe, penalty, torchvision_name
from lpslim.recipe import Recipe, scaled
from lpslim.slimming import ScaleSparsifier
from lpslim.sparsify import Sparsifier
from lpslim.training import Hooks, fit, make_accelerator
from lpslim.units import Units, pooled, regularised_weights

log = logging.getLogger(__name__)

SAMPLE_BATCHES, SAMPLE_SIZE = 5, 128  # images that HRank and CHIP look at, as in the authors' code


@dataclass(frozen=True)
class Survey:
    """The dense network's prunable units, what fewer of them cost, and how few may be left."""

    units: list[Units]
    cost: CostModel
    least: list[int]

    def kept(self, config: Config, scores: list[Tensor]) -> selection.Kept:
        """Return the units that stay under the configured budget.

        Raises:
            UserError: the target cannot be met.
        """
        if config.target_flops is not None:
            drop, target = self.cost.flops_drop, config.target_flops
        elif config.target_params is not None:
            drop, target = self.cost.params_drop, config.target_params
        else:
            return selection.by_ratio(self.units, scores, self.least, config.ratio, config.round_to)
        return selection.by_target(self.units, scores, self.least, target, drop, config.round_to)


def survey(config: Config, model: nn.Module, data: ImageData) -> Survey:
    """Look at the dense network."""
    example = torch.zeros(1, *data.shape)
    units = surgery.find_units(model, example, lookup.find("models", config.model.family).prunable(model))
    cost = CostModel(layer_costs(model, example), units, sum(p.numel() for p in model.parameters()))
    return Survey(units, cost, selection.floors(units, adjust=config.adjust, floor=config.model.floor))


def check_target(config: Config, data: ImageData) -> None:
    """Refuse, before anything is trained, images that do not fit or a target beyond the floors.

    Raises:
        UserError: with what does not fit, or the range that can be reached.
    """
    try:
        found = survey(config, _described(config, data).build(), data)
    except RuntimeError as problem:  # too small for its poolings, say
        raise UserError(
            f"model={config.model.name}: does not take images {data.shape}: {problem}"
        ) from problem
    if config.structure == "weights":
        return
    for key, drop in (("target_flops", found.cost.flops_drop), ("target_params", found.cost.params_drop)):
        target = getattr(config, key)
        if target is not None and target > drop(found.least) + selection.TOLERANCE:
            raise UserError(
                f"{key}={target}: must be at most {drop(found.least):.4f}: with these floors "
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
        makers = {"baseline": self._baseline, "sparsify": self._sparsify, "widths": self._score,
                  "score": self._score, "prune": self._prune, "finetune": self._finetune}  # fmt: skip
        return {name: self._obtain(step, makers[name]) for name, step in self.steps.items()}

    @property
    def _trunk(self) -> Path:
        """The folder of the network that is scored and pruned."""
        return self.steps["sparsify" if "sparsify" in self.steps else "baseline"].folder

    def _obtain(self, step: Step, make: Callable[[Step, Path], Info]) -> Info:
        with store.locked(step.folder.with_suffix(".lock")):
            if step.done:
                log.info("%s %s: found, not computed again", step.name, step.key)
                for row in step.info().get("curve", []):
                    self._chart(step.name, row)
            else:
                with store.new_folder(step.folder) as scratch:
                    began = time.perf_counter()
                    info = make(step, scratch)
                    info["seconds"] = time.perf_counter() - began
                    store.write_json(scratch / "stage.json", {**info, "depends_on": step.depends_on})
        return step.info()

    def _fit(self, model: nn.Module, stage: str, recipe: Recipe, hooks: Hooks | None = None) -> Info:
        curve = fit(
            model, self.data, recipe, self.config.trainer,
            seed=self.config.seed, stage=stage, hooks=hooks,
            after_epoch=lambda row: self._chart(stage, row),
        )  # fmt: skip
        return {"curve": curve, "accuracy": summarise(curve) if curve else self._measured(model)}

    def _measured(self, model: nn.Module) -> dict[str, float]:
        """Return the accuracy of a network that is not trained: the same under every protocol."""
        device = make_accelerator(self.config.trainer).device
        accuracy = evaluate(model.to(device), self.data.test.to(device))["accuracy"]
        model.to("cpu")
        return dict.fromkeys(PROTOCOLS, accuracy)

    def _chart(self, stage: str, row: dict[str, float]) -> None:
        for name, value in row.items():
            if name not in ("epoch", "seconds"):
                self.writer.add_scalar(f"{stage}/{name}", value, int(row["epoch"]))

    def _baseline(self, _: Step, folder: Path) -> Info:
        """Train the dense network, from scratch or from given weights."""
        chosen = self.config.model
        torch.manual_seed(derive_seed(self.config.seed, "initial weights"))
        described = _described(self.config, self.data)
        model = described.build()
        if chosen.weights:
            family = lookup.find("models", chosen.family)
            aliases = getattr(family, "ALIASES", {})
            checkpoints.initialise(model, chosen.weights, torchvision_name(chosen), aliases)
        info = self._fit(model, "baseline", scaled(self.config.baseline, self.config.epoch_scale))
        architecture.save(folder, model, described)
        return info

    def _sparsify(self, _: Step, folder: Path) -> Info:
        """Train under the penalty; keep the network with W and, of the ADMM, with Z."""
        config, chosen = self.config, self.config.regularizer
        parent = self.steps["baseline"].folder
        model, described = architecture.load(parent), architecture.describe(parent)
        recipe = scaled(chosen.train, config.epoch_scale)
        if chosen.penalty == "bn_scale":
            info = self._fit(model, "sparsify", recipe, ScaleSparsifier(model, lamb=config.lamb))
            architecture.save(folder, model, described)
            return info
        sparsifier = Sparsifier(
            model, penalty(config), lamb=config.lamb, rho=config.rho,
            form=chosen.form, updates_per_epoch=chosen.updates_per_epoch,
        )  # fmt: skip
        info = self._fit(model, "sparsify", recipe, sparsifier)
        architecture.save(folder, model, described)
        (folder / "Z").mkdir()
        model.load_state_dict({**model.state_dict(), **sparsifier.sparse()})
        architecture.save(folder / "Z", model, described)
        return {**info, "convergence": sparsifier.convergence}

    def _scored(self) -> nn.Module:
        """Return the network whose weights are scored: with Z where there is one and it is asked for."""
        on_z = self.config.criterion.weights == "Z" and (self._trunk / "Z").is_dir()
        return architecture.load(self._trunk / "Z" if on_z else self._trunk)

    def _score(self, step: Step, folder: Path) -> Info:
        """Score every channel by one criterion."""
        device = make_accelerator(self.config.trainer).device
        model = self._scored()
        units = survey(self.config, model, self.data).units
        torch.manual_seed(derive_seed(self.config.seed, "score"))
        seed = derive_seed(self.config.seed, "score", "batches")
        batches = self.data.train.to(device).train_batches(SAMPLE_SIZE, seed)
        images = (images for images, _ in islice(batches, SAMPLE_BATCHES))
        score = lookup.find("criteria", step.depends_on["criterion"]).score
        found = pooled(units, score(model.to(device), units, images))
        tensors = {each.layer: s.cpu().contiguous() for each, s in zip(units, found, strict=True)}
        save_file(tensors, folder / "scores.safetensors")
        return {}

    def _scores(self, name: str, units: list[Units], across: str) -> list[Tensor]:
        stored = load_file(self.steps[name].folder / "scores.safetensors")
        return [selection.ACROSS[across](stored[each.layer]) for each in units]

    def _prune(self, _: Step, folder: Path) -> Info:
        """Select by the scores and remove; what is left keeps the weights W."""
        config = self.config
        model, described = architecture.load(self._trunk), architecture.describe(self._trunk)
        if config.structure == "weights":
            return self._mask(folder, model, described)
        found = survey(config, model, self.data)
        if config.criterion.widths:
            widest = found.kept(config, self._scores("widths", found.units, "minmax"))
            scores = self._scores("score", found.units, "raw")
            kept = selection.strongest(found.units, scores, [len(widest[each.layer]) for each in found.units])
        else:
            kept = found.kept(config, self._scores("score", found.units, config.criterion.across))
        surgery.prune(model, torch.zeros(1, *self.data.shape), kept)
        architecture.save(folder, model, replace(described, kept=kept))
        widths = [len(kept[each.layer]) for each in found.units]
        channels = {each.layer: [n * each.groups, each.size * each.groups]
                    for each, n in zip(found.units, widths, strict=True)}  # fmt: skip
        return self._pruned(model, channels, found.cost.dense, found.cost(widths))

    def _mask(self, folder: Path, model: nn.Module, described: Architecture) -> Info:
        """Set the weights that are smallest in Z (or W) to zero, up to the budget."""
        config = self.config
        example = torch.zeros(1, *self.data.shape)
        layers = layer_costs(model, example)
        dense = masking.remaining(model, layers)
        scored = regularised_weights(self._scored())
        price, budget = dict.fromkeys(scored, 1.0), config.ratio * sum(w.numel() for w in scored.values())
        if config.target_flops is not None:
            price, budget = masking.positions(layers, list(scored)), config.target_flops * dense.macs
        elif config.target_params is not None:
            budget = config.target_params * dense.params
        masking.apply(model, masking.smallest(scored, regularised_weights(model), price, budget))
        architecture.save(folder, model, described)
        return self._pruned(model, {}, dense, masking.remaining(model, layers))

    def _pruned(self, model: nn.Module, channels: dict[str, Any], dense: Cost, left: Cost) -> Info:
        return {
            "channels": channels,
            "dense": asdict(dense),
            "pruned": asdict(left),
            "flops_drop": 100 * (1 - left.macs / dense.macs),
            "params_drop": 100 * (1 - left.params / dense.params),
            "accuracy": {"last": self._measured(model)["last"]},
        }

    def _finetune(self, _: Step, folder: Path) -> Info:
        """Train the smaller network: from its weights, or as a control from scratch."""
        config, parent = self.config, self.steps["prune"].folder
        described = architecture.describe(parent)
        recipe = scaled(last_recipe(config), config.epoch_scale)
        if config.retrain == "finetune":
            model = architecture.load(parent)
        else:
            torch.manual_seed(derive_seed(config.seed, "weights from scratch"))
            model = described.build()
        if config.retrain == "scratch_b":
            info = self.steps["prune"].info()
            lengthened = round(recipe.epochs * info["dense"]["macs"] / info["pruned"]["macs"])
            recipe = replace(recipe, epochs=lengthened)
        hooks = masking.MaskKeeper(model) if config.structure == "weights" else None
        info = self._fit(model, "finetune", recipe, hooks)
        architecture.save(folder, model, described)
        return info
