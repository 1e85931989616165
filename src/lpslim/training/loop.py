"""The training loop, and how it goes on where it was."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice

import torch
from lpslim.progress import Curve
from torch import nn
from tqdm import tqdm

from lpslim.base.errors import DivergenceError
from lpslim.base.hashing import derive_seed
from lpslim.data.splits import Batch, Data
from lpslim.training.checkpoint import Snapshots
from lpslim.training.evaluation import evaluate
from lpslim.training.loop import distributed
from lpslim.training.runtime import Hooks, Training
from lpslim.training.schedule import Recipe, Trainer

log = logging.getLogger(__name__)

LOGGED = ("train_loss", "val_accuracy", "test_accuracy", "seconds")


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
