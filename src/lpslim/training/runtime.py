"""A network, its optimiser and hooks in the middle of a training: one step, and what a checkpoint holds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from lpslim.allocator import keep_freed_memory
from lpslim.progress import Progress, restored
from torch import Tensor, nn

from lpslim.base.errors import UserError
from lpslim.data.splits import Data
from lpslim.training.checkpoint import Snapshots
from lpslim.training.loop import distributed
from lpslim.training.schedule import Recipe, Trainer, learning_rate

log = logging.getLogger(__name__)

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
    if wants_cpu:
        keep_freed_memory()
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=wants_cpu, mixed_precision=trainer.precision)


def compiled(model: nn.Module, trainer: Trainer, images: bool) -> Callable[[Tensor], Tensor]:
    """Return the network's compiled form; ``images``: all inputs have one shape.

    What was compiled before in this process is forgotten: PyTorch would take a shape that it sees change for
    a variable one, and the bits of a training would follow from what ran before it; and after a few
    networks it would stop compiling.
    """
    torch.compiler.reset()
    mode = "reduce-overhead" if trainer.cuda_graphs else "default"
    forward: Callable[[Tensor], Tensor] = torch.compile(model, dynamic=not images, mode=mode)
    return forward


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
        # without gradients to share, as where one of several processes measures something for all
        wrapped = self.accelerator.prepare_model(model, evaluation_mode=self.share.world == 1)
        self.optimizer = self.accelerator.prepare_optimizer(make_optimizer(model, recipe))
        self.forward = compiled(wrapped, trainer, images) if trainer.compile else wrapped
        self.graphs = bool(trainer.cuda_graphs)
        hooks.begin()
        self.batch_size = min(recipe.batch_size, len(self.data.train))
        self.steps_per_epoch = len(self.data.train) // self.batch_size
        self.check_every = 1 if self.device.type == "cpu" else CHECKED_STEPS
        self.progress = Progress()
        self.generators: dict[str, Any] | None = None  # as a checkpoint had them, until the batches are drawn

    def step(self, inputs: Tensor, labels: Tensor) -> None:
        """Do one step of the optimiser."""
        done, task = self.progress, self.data.task
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(done.step)
        with self.accelerator.autocast():
            outputs = self.forward(inputs.contiguous(memory_format=self.layout))
            if self.graphs:
                outputs = outputs.clone()  # its own memory is the next step's: answers are kept beyond it
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
