"""Training and runtime settings, and the learning rate that follows from them. Imports no torch."""

import math
from dataclasses import dataclass, field, replace

SCHEDULES = ("cosine", "step", "linear", "constant")
OPTIMIZERS = ("sgd", "adamw")
PRECISIONS = ("auto", "fp32", "bf16")
DEVICES = ("auto", "cpu", "cuda")
TRACKERS = ("tensorboard", "wandb", "mlflow")  # packages; the latter two are extras


@dataclass
class TrainConfig:
    """SGD with momentum, or AdamW, for so many epochs along a learning-rate schedule.

    AdamW's betas are the momentum and 0.999; it decays matrices and kernels, not biases or norms.
    ``clip_norm`` bounds the norm of the loss's gradient; null for no bound.
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
class SharedSchedule(TrainConfig):
    """Training of one of several stages on one learning-rate schedule.

    before, after: epochs of the stages before and after it.
    """

    before: int = 0
    after: int = 0


@dataclass
class RuntimeConfig:
    """Where and in which arithmetic a training runs. Fields marked as ignored change no result.

    precision: "auto" is bf16 where the device computes it natively, else fp32. cuda_graphs: whether one GPU
    replays its training steps, on images. checkpoint_minutes: time between two checkpoints; 0 for one after
    every step (on a GPU every tenth), null for none. trackers: who gets the measurements.
    """

    device: str = field(default="auto", metadata={"ignored": True})
    precision: str = "auto"
    channels_last: bool = True
    compile: bool = False
    cuda_graphs: bool = field(default=False, metadata={"ignored": True})
    threads: int | None = field(default=None, metadata={"ignored": True})
    checkpoint_minutes: float | None = field(default=10.0, metadata={"ignored": True})
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"], metadata={"ignored": True})


def scaled(config: TrainConfig, factor: float) -> TrainConfig:
    """Return ``config`` with epochs and warm-up times ``factor``; at least one epoch, if it has any."""
    if not config.epochs:
        return config
    epochs = max(1, round(config.epochs * factor))
    return replace(config, epochs=epochs, warmup_epochs=config.warmup_epochs * (epochs / config.epochs))


def learning_rate(config: TrainConfig, epoch: float) -> float:
    """Return the learning rate at a (fractional) epoch: a linear warm-up, then the schedule.

    The warm-up takes w = min(warmup_epochs, E / 3) of the E epochs. ``cosine``: ``lr/2 * (1 + cos(pi * t))``
    and ``linear``: ``lr * (1 - t)``, both with ``t = (epoch - w) / (E - w)``. ``step``: a tenth after each
    milestone, a fraction of E. ``constant``: ``lr``. Of a :class:`SharedSchedule`, E are those
    of all stages.
    """
    epochs = config.epochs
    if isinstance(config, SharedSchedule):
        epoch, epochs = config.before + epoch, config.before + epochs + config.after
    warmup = min(config.warmup_epochs, epochs / 3)
    if epoch < warmup:
        return config.lr * epoch / warmup
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "step":
        return config.lr * 0.1 ** sum(epoch >= part * epochs for part in config.milestones)
    t = (epoch - warmup) / (epochs - warmup)
    return config.lr * (1 - t if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * t)))


def iterations_done(step: int, steps_per_epoch: int, updates_per_epoch: int) -> int:
    """Return how many outer iterations have ended after so many steps."""
    return step * updates_per_epoch // steps_per_epoch
