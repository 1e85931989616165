"""The pipeline: baseline, sparsify, score, prune, finetune. Each stage is found, or made once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from lpslim.base import files, registry
from lpslim.base.errors import DivergenceError
from lpslim.base.hashing import derive_seed
from lpslim.data.splits import Data, example
from lpslim.experiment.config import PROTOCOLS, Config
from lpslim.experiment.keys import Info, Step, architecture_of, last_recipe, penalty, torchvision_name
from lpslim.models import storage, weights
from lpslim.models.storage import Architecture
from lpslim.pruning import selection, unstructured
from lpslim.pruning.budget import share, survey
from lpslim.pruning.cost import Cost, layer_costs
from lpslim.pruning.units import Units, pooled, regularised_weights
from lpslim.training.checkpoint import Snapshots
from lpslim.training.evaluation import evaluate, summarise
from lpslim.training.loop import distributed, fit
from lpslim.training.regularizers.admm import Sparsifier
from lpslim.training.regularizers.bn_l1 import ScaleSparsifier
from lpslim.training.runtime import Hooks, make_accelerator
from lpslim.training.schedule import Recipe, scaled

log = logging.getLogger(__name__)

SAMPLE_BATCHES, SAMPLE_SIZE = 5, 128  # images that HRank and CHIP look at, as in the authors' code


@dataclass(frozen=True)
class Pipeline:
    """One run on loaded data; ``writer`` takes the scalars of every epoch, if this process charts them.

    Of several processes the main one locks, finds, scores, prunes and writes; all of them train.
    """

    config: Config
    data: Data
    steps: dict[str, Step]
    writer: SummaryWriter | None

    def run(self) -> Iterator[tuple[str, bool, Info]]:
        """Find or make every stage, in order; yield its name, whether it was found, and what it says."""
        makers = {"baseline": self._baseline, "sparsify": self._sparsify, "widths": self._score,
                  "score": self._score, "prune": self._prune, "finetune": self._finetune}  # fmt: skip
        for name, step in self.steps.items():
            yield name, *self._obtain(step, makers[name])

    @property
    def _trunk(self) -> Path:
        """The folder of the network that is scored and pruned."""
        return self.steps["sparsify" if "sparsify" in self.steps else "baseline"].folder

    def _obtain(self, step: Step, make: Callable[[Step, Path], Info]) -> tuple[bool, Info]:
        with ExitStack() as held:
            ranks.decided(lambda: held.enter_context(store.locked(step.lock)))
            if not (found := ranks.decided(lambda: self._found(step))):
                with ExitStack() as made:
                    scratch = ranks.decided(lambda: made.enter_context(store.new_folder(step.folder)))
                    began = time.perf_counter()
                    try:
                        trains = "recipe" in step.depends_on
                        info = make(step, scratch) if trains else ranks.decided(lambda: make(step, scratch))
                    except DivergenceError:
                        ranks.decided(self._snapshots(step.name).clear)  # a second try must not go on there
                        raise
                    info |= {"seconds": time.perf_counter() - began, **ranks.counted()}
                    ranks.decided(lambda: store.seal(scratch, {**info, "depends_on": step.depends_on}))
            ranks.decided(self._snapshots(step.name).clear)
        return found, ranks.decided(step.info)

    def _found(self, step: Step) -> bool:
        """Whether the stage is there and intact; clears what dead processes left. Its lock must be held."""
        store.clear_scratch(step.folder)
        if step.done and (fault := store.damage(step.folder)):
            aside = store.set_aside(step.folder)
            log.warning("%s %s: is damaged (%s): computed again; the damaged one is now %s",
                        step.name, step.key, fault, aside)  # fmt: skip
        if not step.done:
            return False
        log.info("%s %s: found, not computed again", step.name, step.key)
        for row in step.info().get("curve", []):
            self._chart(step.name, row)
        return True

    def _snapshots(self, stage: str) -> Snapshots:
        return Snapshots(self.steps[stage].folder, self.config.trainer.checkpoint_minutes)

    def _fit(self, model: nn.Module, stage: str, recipe: Recipe, hooks: Hooks | None = None) -> Info:
        curve = fit(
            model, self.data, recipe, self.config.trainer,
            seed=self.config.seed, stage=stage, hooks=hooks,
            after_epoch=lambda row: self._chart(stage, row), snapshots=self._snapshots(stage),
        )  # fmt: skip
        given = {} if curve else ranks.decided(lambda: self._measured(model))
        return {"curve": curve, "accuracy": summarise(curve) if curve else given}

    def _measured(self, model: nn.Module) -> dict[str, float]:
        """Return the accuracy of a network that is not trained: the same under every protocol."""
        device = make_accelerator(self.config.trainer).device
        accuracy = evaluate(model.to(device), self.data.test.to(device), task=self.data.task)["accuracy"]
        model.to("cpu")
        return dict.fromkeys(PROTOCOLS, accuracy)

    def _chart(self, stage: str, row: dict[str, float]) -> None:
        for name, value in row.items():
            if self.writer and name not in ("epoch", "seconds"):
                self.writer.add_scalar(f"{stage}/{name}", value, int(row["epoch"]))

    def _baseline(self, _: Step, folder: Path) -> Info:
        """Train the dense network, from scratch or from given weights."""
        chosen = self.config.model
        torch.manual_seed(derive_seed(self.config.seed, "initial weights"))
        dense = architecture_of(chosen, self.data)
        model = dense.build()
        family = lookup.find("models", chosen.family)
        if chosen.weights and hasattr(family, "initialise"):
            family.initialise(model, chosen.weights)
        elif chosen.weights:
            aliases = getattr(family, "ALIASES", {})
            checkpoints.initialise(model, chosen.weights, torchvision_name(chosen), aliases)
        info = self._fit(model, "baseline", scaled(self.config.baseline, self.config.epoch_scale))
        ranks.decided(lambda: architecture.save(folder, model, dense))
        return info

    def _sparsify(self, _: Step, folder: Path) -> Info:
        """Train under the penalty; keep the network with W and, of the ADMM, with Z."""
        config, chosen = self.config, self.config.regularizer
        parent = self.steps["baseline"].folder
        model, described = architecture.load(parent), architecture.describe(parent)
        recipe = scaled(chosen.train, config.epoch_scale)
        if chosen.penalty == "bn_scale":
            info = self._fit(model, "sparsify", recipe, ScaleSparsifier(model, lamb=config.lamb))
            ranks.decided(lambda: architecture.save(folder, model, described))
            return info
        sparsifier = Sparsifier(
            model, penalty(config), lamb=config.lamb, rho=config.rho,
            form=chosen.form, updates_per_epoch=chosen.updates_per_epoch,
        )  # fmt: skip
        info = self._fit(model, "sparsify", recipe, sparsifier)
        ranks.decided(lambda: architecture.save(folder, model, described))
        ranks.decided((folder / "Z").mkdir)
        model.load_state_dict({**model.state_dict(), **sparsifier.sparse()})
        ranks.decided(lambda: architecture.save(folder / "Z", model, described))
        return {**info, "convergence": sparsifier.convergence}

    def _scored(self) -> nn.Module:
        """Return the network whose weights are scored: with Z where there is one and it is asked for."""
        on_z = self.config.criterion.weights == "Z" and (self._trunk / "Z").is_dir()
        return architecture.load(self._trunk / "Z" if on_z else self._trunk)

    def _score(self, step: Step, folder: Path) -> Info:
        """Score every channel by one criterion."""
        device = make_accelerator(self.config.trainer).device
        model = self._scored()
        units = survey(self.config, model, self.data).without(self.config.protected).units
        torch.manual_seed(derive_seed(self.config.seed, "score"))
        seed = derive_seed(self.config.seed, "score", "batches")
        batches = self.data.train.to(device).train_batches(min(SAMPLE_SIZE, len(self.data.train)), seed)
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
        found = survey(config, model, self.data).without(config.protected)
        if config.criterion.widths:
            widest = found.kept(config, self._scores("widths", found.units, "minmax"))
            scores = self._scores("score", found.units, "raw")
            kept = selection.strongest(found.units, scores, [len(widest[each.layer]) for each in found.units])
        else:
            kept = found.kept(config, self._scores("score", found.units, config.criterion.across))
        described = replace(described, kept=kept)
        architecture.save(folder, described.cut(model), described)
        widths = [len(kept[each.layer]) for each in found.units]
        channels = {each.layer: [n * each.groups, each.size * each.groups]
                    for each, n in zip(found.units, widths, strict=True)}  # fmt: skip
        return self._pruned(model, channels, found.cost.dense, found.cost(widths))

    def _mask(self, folder: Path, model: nn.Module, described: Architecture) -> Info:
        """Set the weights that are smallest in Z (or W) to zero, up to the budget."""
        config = self.config
        layers = layer_costs(model, example(self.data.shape))
        dense = masking.remaining(model, layers)
        scored = regularised_weights(self._scored())
        price, budget = dict.fromkeys(scored, 1.0), config.ratio * sum(w.numel() for w in scored.values())
        if config.target_flops is not None:
            price, budget = masking.positions(layers, list(scored)), config.target_flops * dense.macs
        elif config.target_params is not None:
            budget = share(config.target_params, dense.params) * dense.params
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
        ranks.decided(lambda: architecture.save(folder, model, described))
        return info
