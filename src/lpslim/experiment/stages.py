"""Pipeline: baseline, sparsify, score, prune, finetune. A stage is found by its key, or computed once.

Of several processes the main one locks, finds, scores, prunes and writes; all of them train.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from inspect import signature
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lpslim.base import files
from lpslim.base.errors import DivergenceError
from lpslim.base.files import derive_seed
from lpslim.base.modules import example_input
from lpslim.data.splits import Data
from lpslim.experiment import keys
from lpslim.experiment.config import PROTOCOLS, Config
from lpslim.experiment.keys import Info, PlannedStage
from lpslim.experiment.tracking import Trackers
from lpslim.models import family as families
from lpslim.models import storage
from lpslim.pruning import budget, criteria, selection, unstructured
from lpslim.pruning.units import regularised_weights
from lpslim.training.callbacks import Callback, MaskKeeper, Regularizer
from lpslim.training.checkpoint import Checkpoint
from lpslim.training.distributed import broadcast_from_main
from lpslim.training.evaluation import evaluate, summarise
from lpslim.training.loop import fit

SAMPLE_BATCHES, SAMPLE_SIZE = 5, 128  # that a criterion may look at, as in HRank's and CHIP's code
SCORES = "scores.safetensors"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """One run: its configuration, data and stages; ``trackers`` in the main process."""

    config: Config
    data: Data
    steps: dict[str, PlannedStage]
    trackers: Trackers | None = None

    @property
    def unpruned(self) -> Path:
        """Folder of the network that is pruned."""
        return self.steps["sparsify" if "sparsify" in self.steps else "baseline"].folder

    def candidates(self, model: nn.Module) -> budget.Candidates:
        """Return what can be removed from the dense network ``model``."""
        config, example = self.config, example_input(self.data.shape)
        family = families.get(config.model.family)
        units = (family.coupled_units if config.coupled else family.units)(model, example)
        shares = {"adjust": config.adjust, "floor": config.model.floor, "coupled_floor": config.coupled_floor}
        return budget.candidates(model, example, units, **shares).without(config.protected)

    def track(self, stage: str, row: dict[str, float], convergence: Sequence[dict[str, float]]) -> None:
        """Track the measurements of an epoch, and of the outer iterations that ended in it."""
        if self.trackers:
            self.trackers.log(stage, row, by="epoch")
            for outer in (outer for outer in convergence if 0 <= row["epoch"] - outer["epoch"] < 1):
                self.trackers.log("admm", outer, by="iteration")

    def regularizer(self, model: nn.Module) -> Regularizer:
        """Return the regulariser of a network, given what it asks for of ``keys.LATE``."""
        build, _ = keys.regularizer(self.config)
        late = {"model": model, "example": example_input(self.data.shape), "candidates": self.candidates,
                "measure": self.measure}  # fmt: skip
        asked = signature(build.func).parameters
        return build(**{name: value for name, value in late.items() if name in asked})

    def measure(self, model: nn.Module) -> float:
        """Return the accuracy of a network in training, on val or, where there is no such split, on test."""
        split = self.data.val if len(self.data.val) else self.data.test
        return evaluate(model, split.to(next(model.parameters()).device), task=self.data.task)["accuracy"]


def obtain(run: Run, stage: str) -> Info:
    """Find a stage or compute it; return what it says of itself (DivergenceError: a loss is not finite)."""
    step = run.steps[stage]
    checkpoint = Checkpoint(step.folder, run.config.trainer.checkpoint_minutes)
    with _on_main(files.locked(step.folder.with_suffix(".lock"))):
        found = broadcast_from_main(lambda: _is_intact(step))
        try:
            if not found:
                with _on_main(files.new_folder(step.folder)) as folder:
                    _compute(run, replace(step, folder=folder))
        except DivergenceError:
            broadcast_from_main(checkpoint.clear)  # a second try must not go on there
            raise
        broadcast_from_main(checkpoint.clear)
    info: Info = broadcast_from_main(lambda: files.read_json(step.folder / files.MANIFEST))
    for row in info.get("curve", []) if found else []:
        run.track(stage, row, info.get("convergence", []))
    return info


@contextmanager
def _on_main(context: AbstractContextManager[Any]) -> Iterator[Any]:
    """Hold a context in the main process alone; every process gets its value."""
    with ExitStack() as held:
        yield broadcast_from_main(lambda: held.enter_context(context))


def _is_intact(step: PlannedStage) -> bool:
    """Return whether a stage is there as it was written; set a damaged one aside. Its lock must be held."""
    files.clear_scratch(step.folder)
    if step.done and (fault := files.verify_manifest(step.folder)):
        aside = files.set_aside(step.folder)
        log.warning("%s %s: damaged (%s): computed again, kept as %s", step.name, step.key, fault, aside)
    if step.done:
        log.info("%s %s: found, not computed again", step.name, step.key)
    return step.done


def _compute(run: Run, step: PlannedStage) -> None:
    began, stage = time.perf_counter(), STAGES[step.name]
    info = stage(run, step) if "train" in step.depends_on else broadcast_from_main(lambda: stage(run, step))
    info |= {"seconds": time.perf_counter() - began, "depends_on": step.depends_on}
    broadcast_from_main(lambda: files.write_manifest(step.folder, info))


def baseline(run: Run, step: PlannedStage) -> Info:
    """Train the dense network, from random or from pretrained weights."""
    chosen, data = run.config.model, run.data
    torch.manual_seed(derive_seed(run.config.seed, "initial weights"))
    architecture = storage.dense(chosen.family, chosen.name, data.shape, data.num_classes)
    model = architecture.build()
    if chosen.weights:
        families.get(chosen.family).load_weights(model, chosen.name, chosen.weights, chosen.weights_dir)
    return _train(run, step, model, architecture)


def sparsify(run: Run, step: PlannedStage) -> Info:
    """Train under the regulariser; keep the network with W and, where there is a sparse copy, with Z."""
    parent = run.steps["baseline"].folder
    model, architecture = storage.load(parent), storage.describe(parent)
    regularizer = run.regularizer(model)
    info = _train(run, step, model, architecture, regularizer)
    if sparse := regularizer.sparse():
        model.load_state_dict({**model.state_dict(), **sparse})
        broadcast_from_main(lambda: storage.write(step.folder / "Z", model, architecture))
    kept = regularizer.kept()
    return {**info, "convergence": regularizer.convergence, **({"kept": kept} if kept else {})}


def score(run: Run, step: PlannedStage) -> Info:
    """Score every unit by one criterion."""
    device, seed, model = torch.device(run.config.trainer.device), run.config.seed, _scored(run)
    units, train = run.candidates(model).units, run.data.train.to(device)
    batches = train.train_batches(min(SAMPLE_SIZE, len(train)), derive_seed(seed, "score", "batches"))
    torch.manual_seed(derive_seed(seed, "score"))
    sample, name = islice(batches, SAMPLE_BATCHES), step.depends_on["name"]
    scores = criteria.score(name, model.to(device), units, sample, run.data.task.loss)
    save_file({layer: own.contiguous() for layer, own in scores.items()}, step.folder / SCORES)
    return {}


def prune(run: Run, step: PlannedStage) -> Info:
    """Remove the units of the lowest scores, or set the smallest weights to zero; the others keep W."""
    model, architecture, channels = storage.load(run.unpruned), storage.describe(run.unpruned), {}
    if run.config.granularity == "weights":
        scored, example = regularised_weights(_scored(run)), example_input(run.data.shape)
        dense, left = unstructured.prune(model, scored, example, keys.budget(run.config))
    else:
        candidates = run.candidates(model)
        kept, units = _kept(run, candidates), candidates.units
        architecture = replace(architecture, kept=kept)
        architecture.cut(model)
        channels = {u.layer: (len(kept[u.layer]) * u.groups, u.size * u.groups) for u in units}
        dense, left = candidates.cost.dense, candidates.cost([len(kept[u.layer]) for u in units])
    storage.write(step.folder, model, architecture)
    drops = (100 * (1 - left.macs / dense.macs), 100 * (1 - left.params / dense.params))
    cost = {"dense": asdict(dense), "pruned": asdict(left), "flops_drop": drops[0], "params_drop": drops[1]}
    return {"cost": cost, "channels": channels, "accuracy": _measured(run, model)}


def _kept(run: Run, candidates: budget.Candidates) -> selection.Kept:
    def scores(stage: str, norm: str) -> list[Tensor]:
        return selection.of_units(candidates.units, load_file(run.steps[stage].folder / SCORES), norm)

    if kept := files.read_json(run.unpruned / files.MANIFEST).get("kept"):
        return kept
    if "layer_budget" not in run.steps:
        return candidates.select(scores("score", run.config.criterion.score_norm), keys.budget(run.config))
    reference = candidates.select(scores("layer_budget", "minmax"), keys.budget(run.config))
    widths = [len(reference[units.layer]) for units in candidates.units]
    return selection.strongest(candidates.units, scores("score", "raw"), widths)


def finetune(run: Run, step: PlannedStage) -> Info:
    """Train the smaller network: from its weights, or as a control from the dense ones, or from scratch."""
    config, parent, longer = run.config, run.steps["prune"], 1.0
    model, architecture = storage.load(parent.folder), storage.describe(parent.folder)
    if config.retrain == "rewind":
        model = architecture.cut(storage.load(run.steps["baseline"].folder))
    elif config.retrain != "finetune":
        torch.manual_seed(derive_seed(config.seed, "weights from scratch"))
        model = architecture.build()
    if config.retrain == "scratch_b":  # for as many multiply-adds as the dense network's training
        cost = files.read_json(parent.folder / files.MANIFEST)["cost"]
        longer = cost["dense"]["macs"] / cost["pruned"]["macs"]
    keeper = MaskKeeper(model) if config.granularity == "weights" else None
    return _train(run, step, model, architecture, keeper, longer)


def _train(
    run: Run, step: PlannedStage, model: nn.Module, architecture: storage.Architecture,
    callback: Callback | None = None, longer: float = 1.0,
) -> Info:  # fmt: skip
    """Train a network as its stage is configured, and write it; one that is not trained is measured once."""
    config, curve = keys.trainings(run.config)[step.name], []
    config, trainer = replace(config, epochs=round(config.epochs * longer)), run.config.trainer
    if config.epochs:
        checkpoint = Checkpoint(run.steps[step.name].folder, trainer.checkpoint_minutes)
        curve = fit(
            model, run.data, config, trainer, seed=run.config.seed, stage=step.name,
            callback=callback, checkpoint=checkpoint,
            after_epoch=lambda row: run.track(step.name, row, getattr(callback, "convergence", ())),
        )  # fmt: skip
    accuracy = summarise(curve) if curve else broadcast_from_main(lambda: _measured(run, model))
    broadcast_from_main(lambda: storage.write(step.folder, model, architecture))
    return {"curve": curve, "accuracy": accuracy}


def _measured(run: Run, model: nn.Module) -> dict[str, float]:
    """Return the accuracy of a network that is not trained: the same under every protocol there is."""
    device = torch.device(run.config.trainer.device)
    accuracy = evaluate(model.to(device), run.data.test.to(device), task=run.data.task)["accuracy"]
    model.to("cpu")
    return {protocol: accuracy for protocol in PROTOCOLS if protocol != "val" or len(run.data.val)}


def _scored(run: Run) -> nn.Module:
    """Return the network whose weights are scored: with Z in place of W, if asked for and there is one."""
    z = run.unpruned / "Z"
    return storage.load(z if run.config.criterion.weights == "Z" and z.is_dir() else run.unpruned)


STAGES: dict[str, Callable[[Run, PlannedStage], Info]] = {
    "baseline": baseline, "sparsify": sparsify, "layer_budget": score, "score": score,
    "prune": prune, "finetune": finetune,
}  # fmt: skip
