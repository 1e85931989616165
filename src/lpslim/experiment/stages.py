"""Pipeline: baseline, sparsify, score, prune, finetune. A stage is found by its key, or computed once.

Of several processes the main one locks, finds, scores, prunes and writes; all of them train.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lpslim.base import files
from lpslim.base.errors import DivergenceError
from lpslim.base.hashing import derive_seed
from lpslim.base.modules import example_input
from lpslim.data.splits import Data
from lpslim.experiment import keys
from lpslim.experiment.config import PROTOCOLS, Config
from lpslim.experiment.keys import Info, Step
from lpslim.models import family as families
from lpslim.models import storage
from lpslim.pruning import budget, criteria, selection, unstructured
from lpslim.pruning.budget import Budget, Candidates
from lpslim.pruning.cost import layer_costs
from lpslim.pruning.units import regularised_weights
from lpslim.training.callbacks import Callback, MaskKeeper
from lpslim.training.checkpoint import Checkpoint
from lpslim.training.distributed import broadcast_from_main
from lpslim.training.evaluation import evaluate, summarise
from lpslim.training.loop import fit
from lpslim.training.runtime import make_accelerator

SAMPLE_BATCHES, SAMPLE_SIZE = 5, 128  # that a criterion may look at, as in HRank's and CHIP's code
SCORES = "scores.safetensors"
log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """One run on loaded data, with its planned stages; ``charts``: a TensorBoard writer in the main process."""

    config: Config
    data: Data
    steps: dict[str, Step]
    charts: Any = None

    def chart(self, stage: str, row: dict[str, float]) -> None:
        """Chart the measurements of an epoch."""
        for name in row.keys() - {"epoch", "seconds"} if self.charts else ():
            self.charts.add_scalar(f"{stage}/{name}", row[name], int(row["epoch"]))

    def candidates(self, model: nn.Module) -> Candidates:
        """Return what can be removed from the dense network ``model``."""
        config, example = self.config, example_input(self.data.shape)
        units = families.get(config.model.family).units(model, example)
        found = budget.candidates(model, example, units, adjust=config.adjust, floor=config.model.floor)
        return found.without(config.protected)

    @property
    def budget(self) -> Budget:
        """How much is to be removed."""
        c = self.config
        return Budget(c.ratio, c.target_flops, c.target_params, c.round_to)

    @property
    def trunk(self) -> Path:
        """The folder of the network that is pruned."""
        return self.steps["sparsify" if "sparsify" in self.steps else "baseline"].folder

    @property
    def scored(self) -> Path:
        """The folder of the network that is scored: with Z in place of W, if asked for and there is one."""
        z = self.trunk / "Z"
        return z if self.config.criterion.weights == "Z" and z.is_dir() else self.trunk

    def checkpoint(self, stage: str) -> Checkpoint:
        """Return the checkpoints inside a stage."""
        return Checkpoint(self.steps[stage].folder, self.config.trainer.checkpoint_minutes)


def obtain(run: Run, stage: str) -> Info:
    """Find a stage or compute it; return what it says of itself.

    Raises:
        DivergenceError: its training loss is not finite.
    """
    step, checkpoint = run.steps[stage], run.checkpoint(stage)
    with _on_main(files.locked(step.lock)):
        if not (found := broadcast_from_main(lambda: _is_intact(step))):
            with _on_main(files.new_folder(step.folder)) as scratch:
                try:
                    _compute(run, step, scratch)
                except DivergenceError:
                    broadcast_from_main(checkpoint.clear)  # a second try must not go on there
                    raise
        broadcast_from_main(checkpoint.clear)
    info = broadcast_from_main(step.info)
    for row in info.get("curve", []) if found else []:
        run.chart(stage, row)
    return info


@contextmanager
def _on_main(context: AbstractContextManager[T]) -> Iterator[T]:
    """Hold a context in the main process alone; every process gets its value."""
    with ExitStack() as held:
        yield broadcast_from_main(lambda: held.enter_context(context))


def _is_intact(step: Step) -> bool:
    """Return whether a stage is there as it was written; set a damaged one aside. Its lock must be held."""
    files.clear_scratch(step.folder)
    if step.done and (fault := files.verify_manifest(step.folder)):
        aside = files.set_aside(step.folder)
        log.warning("%s %s: damaged (%s): computed again, kept as %s", step.name, step.key, fault, aside)
    if step.done:
        log.info("%s %s: found, not computed again", step.name, step.key)
    return step.done


def _compute(run: Run, step: Step, folder: Path) -> None:
    began, stage = time.perf_counter(), STAGES[step.name]
    trains = "train" in step.depends_on
    info = stage(run, step, folder) if trains else broadcast_from_main(lambda: stage(run, step, folder))
    info |= {"seconds": time.perf_counter() - began, "depends_on": step.depends_on}
    broadcast_from_main(lambda: files.write_manifest(folder, info))


def baseline(run: Run, step: Step, folder: Path) -> Info:
    """Train the dense network, from random or from pretrained weights."""
    chosen, data = run.config.model, run.data
    torch.manual_seed(derive_seed(run.config.seed, "initial weights"))
    architecture = storage.dense(chosen.family, chosen.name, data.shape, data.num_classes)
    model = architecture.build()
    if chosen.weights:
        families.get(chosen.family).load_weights(model, chosen.name, chosen.weights)
    info = _train(run, step, model)
    broadcast_from_main(lambda: storage.write(folder, model, architecture))
    return info


def sparsify(run: Run, step: Step, folder: Path) -> Info:
    """Train under the regulariser; keep the network with W and, where there is a sparse copy, with Z."""
    parent = run.steps["baseline"].folder
    model, architecture = storage.load(parent), storage.describe(parent)
    regularizer = keys.regularizer(run.config)[0](model)
    info = _train(run, step, model, regularizer)
    broadcast_from_main(lambda: storage.write(folder, model, architecture))
    if sparse := regularizer.sparse():
        model.load_state_dict({**model.state_dict(), **sparse})
        broadcast_from_main(lambda: storage.write(folder / "Z", model, architecture))
    return {**info, "convergence": regularizer.convergence}


def score(run: Run, step: Step, folder: Path) -> Info:
    """Score every unit by one criterion."""
    device, seed, model = (
        make_accelerator(run.config.trainer).device,
        run.config.seed,
        storage.load(run.scored),
    )
    units, train = run.candidates(model).units, run.data.train.to(device)
    batches = train.train_batches(min(SAMPLE_SIZE, len(train)), derive_seed(seed, "score", "batches"))
    torch.manual_seed(derive_seed(seed, "score"))
    looked_at, name = islice(batches, SAMPLE_BATCHES), step.depends_on["name"]
    scores = criteria.score(name, model.to(device), units, looked_at, run.data.task.loss)
    save_file({u.layer: s.contiguous() for u, s in zip(units, scores, strict=True)}, folder / SCORES)
    return {}


def prune(run: Run, step: Step, folder: Path) -> Info:
    """Remove the units of the lowest scores, or set the smallest weights to zero; the others keep W."""
    model, architecture, channels = storage.load(run.trunk), storage.describe(run.trunk), {}
    if run.config.granularity == "weights":
        layers = layer_costs(model, example_input(run.data.shape))
        dense = unstructured.remaining(model, layers)
        _mask(run, model, layers, dense)
        left = unstructured.remaining(model, layers)
    else:
        candidates = run.candidates(model)
        architecture = replace(architecture, kept=_select(run, candidates))
        architecture.cut(model)
        widths = [len(architecture.kept[units.layer]) for units in candidates.units]
        channels = {units.layer: (width * units.groups, units.size * units.groups)
                    for units, width in zip(candidates.units, widths, strict=True)}  # fmt: skip
        dense, left = candidates.cost.dense, candidates.cost(widths)
    storage.write(folder, model, architecture)
    drops = {
        "flops_drop": 100 * (1 - left.macs / dense.macs),
        "params_drop": 100 * (1 - left.params / dense.params),
    }
    cost = {"dense": asdict(dense), "pruned": asdict(left), **drops}
    return {"cost": cost, "channels": channels, "accuracy": _measured(run, model)}


def _select(run: Run, candidates: Candidates) -> selection.Kept:
    def scores(stage: str, score_norm: str) -> list[Tensor]:
        stored = load_file(run.steps[stage].folder / SCORES)
        return [selection.SCORE_NORMS[score_norm](stored[units.layer]) for units in candidates.units]

    if "layer_budget" not in run.steps:
        return candidates.select(scores("score", run.config.criterion.score_norm), run.budget)
    kept = candidates.select(scores("layer_budget", "minmax"), run.budget)
    widths = [len(kept[units.layer]) for units in candidates.units]
    return selection.strongest(candidates.units, scores("score", "raw"), widths)


def _mask(run: Run, model, layers, dense) -> None:
    config, scored = run.config, regularised_weights(storage.load(run.scored))
    prices, spend = dict.fromkeys(scored, 1.0), config.ratio * sum(w.numel() for w in scored.values())
    if config.target_flops is not None:
        prices, spend = unstructured.positions(layers, list(scored)), config.target_flops * dense.macs
    elif config.target_params is not None:
        spend = budget.removed_share(config.target_params, dense.params) * dense.params
    unstructured.apply(model, unstructured.smallest(scored, regularised_weights(model), prices, spend))


def finetune(run: Run, step: Step, folder: Path) -> Info:
    """Train the smaller network: from its weights, or as a control from scratch."""
    config, parent = run.config, run.steps["prune"]
    architecture, longer = storage.describe(parent.folder), 1.0
    if config.retrain == "finetune":
        model = storage.load(parent.folder)
    else:
        torch.manual_seed(derive_seed(config.seed, "weights from scratch"))
        model = architecture.build()
    if config.retrain == "scratch_b":  # for as many multiply-adds as the dense network's training
        cost = parent.info()["cost"]
        longer = cost["dense"]["macs"] / cost["pruned"]["macs"]
    info = _train(run, step, model, MaskKeeper(model) if config.granularity == "weights" else None, longer)
    broadcast_from_main(lambda: storage.write(folder, model, architecture))
    return info


def _train(
    run: Run, step: Step, model: nn.Module, callback: Callback | None = None, longer: float = 1.0
) -> Info:
    config = keys.trainings(run.config)[step.name]
    config = replace(config, epochs=round(config.epochs * longer))
    if not config.epochs:
        return {"curve": [], "accuracy": broadcast_from_main(lambda: _measured(run, model))}
    curve = fit(
        model, run.data, config, run.config.trainer, seed=run.config.seed, stage=step.name, callback=callback,
        after_epoch=lambda row: run.chart(step.name, row), checkpoint=run.checkpoint(step.name),
    )  # fmt: skip
    return {"curve": curve, "accuracy": summarise(curve)}


def _measured(run: Run, model: nn.Module) -> dict[str, float]:
    """Return the accuracy of a network that is not trained: the same under every protocol."""
    device = make_accelerator(run.config.trainer).device
    accuracy = evaluate(model.to(device), run.data.test.to(device), task=run.data.task)["accuracy"]
    model.to("cpu")
    return dict.fromkeys(PROTOCOLS, accuracy)


STAGES: dict[str, Callable[[Run, Step, Path], Info]] = {
    "baseline": baseline, "sparsify": sparsify, "layer_budget": score, "score": score,
    "prune": prune, "finetune": finetune,
}  # fmt: skip
