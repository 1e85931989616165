"""How to train: plain settings, and the learning rate that follows from them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

SCHEDULES = ("cosine", "step", "linear", "constant")
OPTIMIZERS = ("sgd", "adamw")
PRECISIONS = ("no", "bf16", "fp16")
DEVICES = ("auto", "cpu", "cuda")


@dataclass
class Recipe:
    """SGD with momentum, or AdamW, for so many epochs, along a learning-rate schedule.

    AdamW's first beta is the momentum, its second 0.999; it decays matrices and kernels, not biases
    or norms. ``clip_norm`` bounds the norm of the loss's gradient; null: no bound.
    """

    epochs: int = 1
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 128
    label_smoothing: float = 0.0
    schedule: str = "cosine"
    warmup_epochs: float = 0.0
    milestones: list[float] = field(default_factory=lambda: [0.5, 0.75])
    optimizer: str = "sgd"
    clip_norm: float | None = None


@dataclass
class Trainer:
    """Where and how the arithmetic runs.

    channels_last, compile, cuda_graphs: null for whatever is measured to be fastest (lpslim.settle).
    cuda_graphs needs compile. checkpoint_minutes: how often a training is kept, to go on after it was
    killed; 0: after every step; null: never.
    """

    device: str = "auto"
    precision: str = "no"
    channels_last: bool | None = True
    compile: bool | None = False
    cuda_graphs: bool | None = False
    threads: int | None = None
    checkpoint_minutes: float | None = 10.0


def scaled(recipe: Recipe, factor: float) -> Recipe:
    """Return the recipe with its length, warm-up included, times ``factor`` (one epoch at least)."""
    if not recipe.epochs:
        return recipe
    epochs = max(1, round(recipe.epochs * factor))
    # by the ratio after rounding: the warm-up stays the same share, and so below the whole
    return replace(recipe, epochs=epochs, warmup_epochs=recipe.warmup_epochs * (epochs / recipe.epochs))


def learning_rate(recipe: Recipe, epoch: float) -> float:
    """Return the rate at a (fractional) epoch: a linear warm-up, then the schedule.

    ``cosine``: ``lr/2 * (1 + cos(pi * (e - w) / (E - w)))`` with w warm-up epochs of E.
    ``step``: a tenth after each milestone, a fraction of E. ``linear``: falls to zero in a
    straight line. ``constant``: ``lr``.
    """
    if epoch < recipe.warmup_epochs:
        return recipe.lr * epoch / recipe.warmup_epochs
    if recipe.schedule == "constant":
        return recipe.lr
    if recipe.schedule == "step":
        passed = sum(epoch >= part * recipe.epochs for part in recipe.milestones)
        return recipe.lr * 0.1**passed
    done = (epoch - recipe.warmup_epochs) / (recipe.epochs - recipe.warmup_epochs)
    if recipe.schedule == "linear":
        return recipe.lr * (1 - done)
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * done))
