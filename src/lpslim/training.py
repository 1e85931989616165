"""The training loop, its schedules, and the hooks through which the ADMM joins in."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from tqdm import tqdm

from lpslim.errors import UserError
from lpslim.evaluation import evaluate
from lpslim.keys import derive_seed
from lpslim.recipe import Recipe, Trainer, learning_rate
from lpslim.splits import Data

log = logging.getLogger(__name__)

Curve = list[dict[str, float]]


class Hooks:
    """What joins the loop; a subclass overrides what it needs."""

    def begin(self) -> None:
        """Called once, when the model is on its device."""

    def after_backward(self) -> None:
        """Called when the gradients of a step are complete, before the optimiser."""

    def after_step(self, step: int, steps_per_epoch: int) -> None:
        """Called after the optimiser; ``step`` counts from 1 through all epochs."""


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
) -> Curve:
    """Train ``model`` in place and return one row of measurements per epoch.

    Rows hold ``epoch`` (from 1), ``lr``, ``train_loss``, ``train_accuracy`` (on the augmented
    batches, while the weights move), ``val_accuracy``, ``test_accuracy``, ``test_loss`` and
    ``seconds``; "accuracy" is the task's metric. Batch order, augmentation and dropout of an epoch
    follow from (seed, stage, epoch) alone, and for streamed images from their number of workers.

    Raises:
        FloatingPointError: the training loss of an epoch is not finite.
    """
    hooks = hooks or Hooks()
    accelerator = make_accelerator(trainer)
    images = len(data.shape) == 3
    layout = torch.channels_last if trainer.channels_last and images else torch.contiguous_format
    model.to(accelerator.device).to(memory_format=layout)
    data = data.to(accelerator.device)
    wrapped, optimizer = accelerator.prepare(model, make_optimizer(model, recipe))
    forward = torch.compile(wrapped) if trainer.compile else wrapped
    hooks.begin()
    size = min(recipe.batch_size, len(data.train))
    steps_per_epoch = len(data.train) // size
    curve: Curve = []
    bar = tqdm(total=recipe.epochs * steps_per_epoch, desc=stage, disable=None, dynamic_ncols=True)
    for epoch in range(recipe.epochs):
        began = time.perf_counter()
        loss_sum = torch.zeros((), device=accelerator.device)
        answers, truths = [], []
        model.train()
        torch.manual_seed(derive_seed(seed, stage, "forward", epoch))  # for dropout and its like
        batches = data.train.train_batches(size, derive_seed(seed, stage, "batches", epoch))
        for step, (inputs, labels) in enumerate(batches):
            rate = learning_rate(recipe, epoch + (step + 0.5) / steps_per_epoch)
            for group in optimizer.param_groups:
                group["lr"] = rate
            with accelerator.autocast():
                outputs = forward(inputs.contiguous(memory_format=layout))
                loss = data.task.loss(outputs.float(), labels, recipe.label_smoothing)
            accelerator.backward(loss)
            accelerator.unscale_gradients()  # of fp16's loss scale, before a penalty joins them
            if recipe.clip_norm:
                nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
            hooks.after_backward()
            optimizer.step()
            optimizer.zero_grad()
            hooks.after_step(epoch * steps_per_epoch + step + 1, steps_per_epoch)
            loss_sum += loss.detach()
            answers.append(data.task.answers(outputs.detach()))
            truths.append(labels)
            bar.update()
            if step % 10 == 0 and not bar.disable:
                bar.set_postfix_str(
                    f"epoch {epoch + 1}/{recipe.epochs}, loss {loss.item():.3f}" + _best(curve)
                )
        if not math.isfinite(mean_loss := loss_sum.item() / steps_per_epoch):
            raise FloatingPointError(f"{stage}: the loss is {mean_loss} in epoch {epoch + 1}")
        val, test = (evaluate(model, part, task=data.task) for part in (data.val, data.test))
        row = {
            "epoch": epoch + 1,
            "lr": rate,
            "train_loss": mean_loss,
            "train_accuracy": data.task.mark(torch.cat(answers), torch.cat(truths)),
            "val_accuracy": val["accuracy"],
            "test_accuracy": test["accuracy"],
            "test_loss": test["loss"],
            "seconds": time.perf_counter() - began,
        }
        curve.append(row)
        after_epoch(row)
        log.info("%s epoch %d/%d: loss %.4f, val %.2f %%, test %.2f %%, %.0f s", stage, epoch + 1,
                 recipe.epochs, mean_loss, val["accuracy"], test["accuracy"], row["seconds"])  # fmt: skip
    bar.close()
    model.to("cpu")
    return curve


def _best(curve: Curve) -> str:
    return f", val {curve[-1]['val_accuracy']:.2f} %" if curve else ""
