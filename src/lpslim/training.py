"""The training loop, the hooks through which the ADMM joins in, and how it goes on where it was."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from tqdm import tqdm

from lpslim import ranks
from lpslim.errors import DivergenceError, UserError
from lpslim.evaluation import evaluate
from lpslim.keys import derive_seed
from lpslim.progress import Curve, Progress, restored
from lpslim.recipe import Recipe, Trainer, learning_rate
from lpslim.snapshots import Snapshots
from lpslim.splits import Batch, Data

log = logging.getLogger(__name__)

LOGGED = ("train_loss", "val_accuracy", "test_accuracy", "seconds")
GENERATORS = ("random", "random_cuda")
CHECKED_STEPS = 10  # on an accelerator, which each look at a loss makes wait


class Hooks:
    """What joins the loop; a subclass overrides what it needs."""

    def begin(self) -> None:
        """Called once, when the model is on its device."""

    def after_backward(self) -> None:
        """Called when the gradients of a step are complete, before the optimiser."""

    def after_step(self, step: int, steps_per_epoch: int) -> None:
        """Called after the optimiser; ``step`` counts from 1 through all epochs."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold: tensors and numbers."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint; called after ``begin``."""


def make_accelerator(trainer: Trainer) -> Accelerator:
    """Return an Accelerator for this trainer; a later stage may ask for another precision."""
    if trainer.threads:
        torch.set_num_threads(trainer.threads)
    wants_cpu = trainer.device == "cpu" or not torch.cuda.is_available()  # Accelerate would choose MPS
    if trainer.device == "cuda" and not torch.cuda.is_available():
        raise UserError("trainer.device=cuda: PyTorch sees no CUDA device; use auto or cpu")
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=wants_cpu, mixed_precision=trainer.precision)


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the recipe's optimiser of all parameters."""
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            model.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, foreach=True
        )
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, recipe.lr, (recipe.momentum, 0.999), foreach=True)


def check_batches(recipes: Mapping[str, Recipe], data: Data) -> None:
    """Refuse batches that the processes of this run cannot take equal parts of.

    Raises:
        UserError: names the key of ``recipes``.
    """
    for key, recipe in recipes.items():
        size, world = min(recipe.batch_size, len(data.train)), ranks.share().world
        if size % world:
            raise UserError(
                f"{key}.batch_size={size}: must be a multiple of {world}, the number of processes"
            )


class Training:
    """A network, its optimiser and hooks in the middle of a recipe: what a checkpoint holds.

    model: is trained in place. data, device: where the accelerator is. layout: of images in memory.
    share: what this process takes of every batch. On CUDA, batch-norm modules become such as take their
    statistics over all processes, of the same names and tensors.
    """

    def __init__(self, model: nn.Module, data: Data, recipe: Recipe, trainer: Trainer, hooks: Hooks) -> None:
        self.accelerator = make_accelerator(trainer)
        self.device = self.accelerator.device
        images = len(data.shape) == 3
        self.layout = torch.channels_last if trainer.channels_last and images else torch.contiguous_format
        model.to(self.device).to(memory_format=self.layout)
        self.share = ranks.share()
        if self.share.world > 1 and self.device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        self.model, self.data, self.recipe, self.hooks = model, data.to(self.device), recipe, hooks
        wrapped, self.optimizer = self.accelerator.prepare(model, make_optimizer(model, recipe))
        self.forward = torch.compile(wrapped) if trainer.compile else wrapped
        hooks.begin()
        self.batch_size = min(recipe.batch_size, len(self.data.train))
        self.steps_per_epoch = len(self.data.train) // self.batch_size
        self.check_every = 1 if self.device.type == "cpu" else CHECKED_STEPS
        self.progress = Progress()
        self.generators: dict[str, Any] | None = None  # as a checkpoint had them, until the batches are drawn

    def step(self, inputs: Tensor, labels: Tensor) -> None:
        """Do one step of the optimiser."""
        done, task = self.progress, self.data.task
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(done.step)
        with self.accelerator.autocast():
            outputs = self.forward(inputs.contiguous(memory_format=self.layout))
            loss = task.loss(outputs.float(), labels, self.recipe.label_smoothing)
        self.accelerator.backward(loss)
        self.accelerator.unscale_gradients()  # of fp16's loss scale, before a penalty joins them
        if self.recipe.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        self.hooks.after_backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        done.add(ranks.mean(loss.detach()), task.answers(outputs.detach()), labels)
        self.hooks.after_step(done.epoch * self.steps_per_epoch + done.step, self.steps_per_epoch)

    def rate(self, step: int) -> float:
        """Return the learning rate of a step of this epoch, counted from 0."""
        return learning_rate(self.recipe, self.progress.epoch + (step + 0.5) / self.steps_per_epoch)

    def due(self, snapshots: Snapshots) -> bool:
        """Whether a checkpoint is due; several processes agree on it when they look at their losses."""
        looks = self.share.world == 1 or self.progress.step % self.check_every == 0
        return looks and ranks.decided(lambda: snapshots.due)

    def state_dict(self) -> dict[str, Any]:
        """Return all that the rest of the training depends on, as tensors and numbers.

        Several processes must call it together: ``others`` has what is not the same in all of them.
        """
        scaler, cuda = self.accelerator.scaler, self.device.type == "cuda"
        own = {
            "random": torch.get_rng_state(),
            "random_cuda": [torch.cuda.get_rng_state(self.device)] if cuda else [],
        }
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "hooks": self.hooks.state_dict(),
            "scaler": scaler.state_dict() if scaler else {},
            "progress": self.progress.state_dict(),
            **own,
            "others": ranks.gathered([{**own, **self.progress.seen()}])[1:],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state``, but for the random generators: they wait for the batches.

        With another number of processes than it was kept by, the generators begin the epoch anew.
        """
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.hooks.load_state_dict(state["hooks"])
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.progress = restored(state["progress"], self.device)
        parts = [{**state, **self.progress.seen()}, *state.get("others", [])]
        rank, world = self.share.rank, self.share.world
        if len(parts) == world:
            self.progress.see(parts[rank])
            self.generators = {name: parts[rank][name] for name in GENERATORS}
        else:
            self.progress.see(*(parts if rank == 0 else []))
            log.warning("goes on with %d processes in place of %d: not to the same bits", world, len(parts))

    def restore_random(self) -> None:
        """Put the random generators where the checkpoint had them, if one was loaded."""
        if not self.generators:
            return
        torch.set_rng_state(self.generators["random"])
        if self.generators["random_cuda"]:
            torch.cuda.set_rng_state(self.generators["random_cuda"][0], self.device)
        self.generators = None


def fit(
    model: nn.Module,
    data: Data,
    recipe: Recipe,
    trainer: Trainer,
    *,
    seed: int,
    stage: str,
    hooks: Hooks | None = None,
    after_epoch: Callable[[dict[str, float]], None] = lambda row: None,
    snapshots: Snapshots | None = None,
) -> Curve:
    """Train ``model`` in place and return one row of measurements per epoch.

    Rows hold ``epoch`` (from 1), ``lr``, ``train_loss``, ``train_accuracy`` (on the augmented
    batches, while the weights move), ``val_accuracy``, ``test_accuracy``, ``test_loss`` and
    ``seconds``; "accuracy" is the task's metric. Batch order, augmentation and dropout of an epoch
    follow from (seed, stage, epoch) alone, and for streamed images from their number of workers.

    With ``snapshots`` a training that was killed goes on from its last checkpoint, to the bits that it
    would have had; ``after_epoch`` is then called for the epochs before as well. Of several processes, which
    all call it, the main one writes the checkpoints, and each gets the same rows, but for ``seconds``.

    Raises:
        DivergenceError: a loss is not finite.
    """
    training = Training(model, data, recipe, trainer, hooks or Hooks())
    if snapshots and (kept := snapshots.load()):
        training.load_state_dict(kept)
        del kept
        log.info(
            "%s: goes on after epoch %d, step %d", stage, training.progress.epoch, training.progress.step
        )
        for row in training.progress.curve:
            after_epoch(row)
    done, steps = training.progress, training.steps_per_epoch
    bar = tqdm(total=recipe.epochs * steps, initial=done.epoch * steps + done.step, desc=stage,
               disable=None if ranks.main() else True, dynamic_ncols=True)  # fmt: skip
    while done.epoch < recipe.epochs:
        began = time.perf_counter() - done.spent
        model.train()
        for inputs, labels in _batches(training, seed, stage):
            training.step(inputs, labels)
            bar.update()
            if done.step % training.check_every == 0:
                done.check(stage)
            if done.step % 10 == 0 and not bar.disable:
                note = f"epoch {done.epoch + 1}/{recipe.epochs}, loss {float(done.loss_sum) / done.step:.3f}"
                bar.set_postfix_str(note + _best(done.curve))
            if snapshots and training.due(snapshots):
                done.check(stage)
                done.spent = time.perf_counter() - began
                ranks.decided(partial(snapshots.save, training.state_dict()))
        done.check(stage)
        training.generators = None
        row = _measured(training, stage, began)
        done.finish_epoch(row)
        after_epoch(row)
        log.info("%s epoch %d/%d: loss %.4f, val %.2f %%, test %.2f %%, %.0f s", stage, done.epoch,
                 recipe.epochs, *(row[name] for name in LOGGED))  # fmt: skip
    bar.close()
    model.to("cpu")
    return done.curve


def _batches(training: Training, seed: int, stage: str) -> Iterator[Batch]:
    """Yield what is left of the current epoch, every generator as if nothing had happened before."""
    done, share = training.progress, training.share
    if done.step == training.steps_per_epoch:
        return
    apart = [share.rank] if share.rank else []
    torch.manual_seed(derive_seed(seed, stage, "forward", done.epoch, *apart))  # for dropout and its like
    order = derive_seed(seed, stage, "batches", done.epoch)
    batches = training.data.train.train_batches(training.batch_size, order, share)
    for _ in islice(batches, done.step):
        pass  # drawn once more, for what follows from them
    training.restore_random()
    yield from batches


def _measured(training: Training, stage: str, began: float) -> dict[str, float]:
    """Return the row of an epoch whose steps are done."""
    done, data = training.progress, training.data
    ranks.same_buffers(training.model)
    val, test = (
        evaluate(training.model, part, task=data.task, share=training.share) for part in (data.val, data.test)
    )
    for loss in (val["loss"], test["loss"]):
        if not math.isfinite(loss):  # the last step broke the weights
            raise DivergenceError(stage, done.epoch + 1, done.step, loss, done.curve)
    return {
        "epoch": done.epoch + 1,
        "lr": training.rate(done.step - 1),
        "train_loss": float(done.loss_sum) / training.steps_per_epoch,
        "train_accuracy": data.task.mark(ranks.joined(done.answers), ranks.joined(done.truths)),
        "val_accuracy": val["accuracy"],
        "test_accuracy": test["accuracy"],
        "test_loss": test["loss"],
        "seconds": time.perf_counter() - began,
    }


def _best(curve: Curve) -> str:
    return f", val {curve[-1]['val_accuracy']:.2f} %" if curve else ""
