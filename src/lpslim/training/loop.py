"""Training loop: epochs of optimiser steps with a callback, evaluated after each, resumable at any step."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lpslim.base.errors import DivergenceError
from lpslim.base.hashing import derive_seed
from lpslim.data.splits import Batch, Data
from lpslim.training import distributed
from lpslim.training.callbacks import Callback
from lpslim.training.checkpoint import Checkpoint
from lpslim.training.evaluation import evaluate
from lpslim.training.runtime import compiler_errors, make_accelerator, resolved
from lpslim.training.schedule import RuntimeConfig, TrainConfig, learning_rate

log = logging.getLogger(__name__)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
LOGGED = ("train_loss", "val_accuracy", "test_accuracy", "seconds")
GPU_CHECK_STEPS = 10  # steps between two looks at the losses, for which a GPU has to be waited for


@dataclass
class TrainState:
    """What the rest of a training depends on, besides the random generators.

    parts: model, optimizer, scaler, callback. epoch: finished epochs; curve: their rows. step, loss_sum,
    seconds: of the current epoch so far. unchecked: losses of the steps since the last check.
    """

    parts: dict[str, Any]
    epoch: int = 0
    step: int = 0
    loss_sum: Tensor | float = 0.0
    seconds: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)
    unchecked: list[Tensor] = field(default_factory=list)

    def batches(self, data: Data, batch_size: int, seed: int, stage: str) -> Iterator[Batch]:
        """Yield the rest of the current epoch, whose draws follow from (seed, stage, epoch) alone."""
        share, order = distributed.share(), derive_seed(seed, stage, "batches", self.epoch)
        apart = [share.rank] if share.rank else []
        # after a checkpoint the batches before it are drawn again, and leave the generators as they were then
        with torch.random.fork_rng(_gpus(), enabled=self.step > 0):
            torch.manual_seed(derive_seed(seed, stage, "forward", self.epoch, *apart))  # of dropout
            batches = data.train.train_batches(batch_size, order, share)
            for _ in islice(batches, self.step):
                pass
        yield from batches

    def check(self, stage: str) -> None:
        """Raise a DivergenceError that names the first step whose loss is not finite."""
        losses = torch.stack(self.unchecked).tolist()
        for step, loss in enumerate(losses, self.step - len(losses) + 1):
            if not math.isfinite(loss):
                raise DivergenceError(stage, self.epoch + 1, step, loss, self.curve)
        self.unchecked.clear()

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint; all processes must call this."""
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        own = [torch.get_rng_state(), *(torch.cuda.get_rng_state(gpu) for gpu in _gpus())]
        state = {**vars(self), "parts": parts, "generators": distributed.gather([own])}
        distributed.broadcast_from_main(lambda: checkpoint.save(state))

    def load(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint, if there is one that as many processes wrote."""
        state, share = checkpoint.load(), distributed.share()
        writers = distributed.gather([len(state["generators"]) if state else 0])
        if not state or set(writers) != {share.world}:
            return
        cpu, *cuda = state.pop("generators")[share.rank]
        for name, saved in state.pop("parts").items():
            self.parts[name].load_state_dict(saved)
        vars(self).update(state)
        torch.set_rng_state(cpu)
        for gpu, generator in zip(_gpus(), cuda, strict=False):
            torch.cuda.set_rng_state(generator, gpu)
        if distributed.is_main():
            log.info("goes on after epoch %d, step %d", self.epoch, self.step)


def _gpus() -> range:
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return range(torch.cuda.device_count() if used else 0)


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return the configured optimiser of all parameters."""
    parameters, decay = list(model.parameters()), config.weight_decay
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, config.lr, config.momentum, weight_decay=decay, foreach=True)
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, config.lr, (config.momentum, 0.999), foreach=True)


@compiler_errors()
def fit(
    model: nn.Module, data: Data, config: TrainConfig, runtime: RuntimeConfig, *, seed: int, stage: str,
    callback: Callback | None = None, after_epoch: Callable[[dict[str, float]], None] = lambda row: None,
    checkpoint: Checkpoint | None = None,
) -> list[dict[str, float]]:  # fmt: skip
    """Train ``model`` in place, leave it on the CPU, and return one row of measurements per epoch.

    Rows hold epoch (from 1), lr, train_loss, val_accuracy, test_accuracy (the task's metric in percent),
    test_loss and seconds; ``after_epoch`` is called with each, also with those from before a checkpoint.
    Several processes must call this together.

    Raises:
        DivergenceError: a loss is not finite.
        UserError, RunError: the device is not there; torch.compile fails.
    """
    runtime, callback, images = resolved(runtime), callback or Callback(), len(data.shape) == 3
    accelerator = make_accelerator(runtime)
    device, data = accelerator.device, data.to(accelerator.device)
    layout = torch.channels_last if runtime.channels_last and images else torch.contiguous_format
    model.to(device).to(memory_format=layout)
    if distributed.count() > 1 and device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    forward = accelerator.prepare_model(model)
    if runtime.compile:
        torch.compiler.reset()  # what was compiled before would change the bits of this training
        forward = torch.compile(forward, dynamic=not images)
    optimizer = make_optimizer(model, config)
    dtype = DTYPES.get(runtime.precision)
    scaler = torch.amp.GradScaler(device.type, enabled=runtime.precision == "fp16")
    callback.begin()
    state = TrainState({"model": model, "optimizer": optimizer, "scaler": scaler, "callback": callback})
    if checkpoint:
        state.load(checkpoint)
    for row in state.curve:
        after_epoch(row)
    batch_size = min(config.batch_size, len(data.train))
    steps, check_steps = len(data.train) // batch_size, 1 if device.type == "cpu" else GPU_CHECK_STEPS
    bar = tqdm(total=config.epochs * steps, initial=state.epoch * steps + state.step, desc=stage,
               disable=None if distributed.is_main() else True, dynamic_ncols=True, leave=False)  # fmt: skip
    while state.epoch < config.epochs:
        began = time.perf_counter() - state.seconds
        model.train()
        for inputs, targets in state.batches(data, batch_size, seed, stage):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, state.epoch + (state.step + 0.5) / steps)
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                outputs = forward(inputs.contiguous(memory_format=layout))
                loss = data.task.loss(outputs.float(), targets, config.label_smoothing)
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            scaler.unscale_(optimizer)
            if config.clip_norm:
                nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            callback.after_backward()  # a penalty's gradient is neither scaled nor bounded
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            state.step += 1
            state.unchecked.append(distributed.mean(loss.detach()))
            state.loss_sum = state.loss_sum + state.unchecked[-1]
            callback.after_step(state.epoch * steps + state.step, steps)
            bar.update()
            if state.step % check_steps == 0 or state.step == steps:
                state.check(stage)
                if checkpoint and distributed.broadcast_from_main(lambda: checkpoint.due):
                    state.seconds = time.perf_counter() - began
                    state.save(checkpoint)
        row = {"epoch": state.epoch + 1, "lr": optimizer.param_groups[0]["lr"],
               "train_loss": float(state.loss_sum) / steps, **_evaluated(model, data, state, stage),
               "seconds": time.perf_counter() - began}  # fmt: skip
        state.curve.append(row)
        state.epoch, state.step, state.loss_sum, state.seconds = state.epoch + 1, 0, 0.0, 0.0
        after_epoch(row)
        if distributed.is_main():
            log.info("%s epoch %d/%d: loss %.4f, val %.2f %%, test %.2f %%, %.0f s", stage, state.epoch,
                     config.epochs, *(row[name] for name in LOGGED))  # fmt: skip
    bar.close()
    model.to("cpu")
    return state.curve


def _evaluated(model: nn.Module, data: Data, state: TrainState, stage: str) -> dict[str, float]:
    """Evaluate on the validation and the test split; a loss that is not finite is a divergence."""
    distributed.same_buffers(model)
    share = distributed.share()
    val, test = (evaluate(model, part, task=data.task, share=share) for part in (data.val, data.test))
    for loss in (val["loss"], test["loss"]):
        if not math.isfinite(loss):
            raise DivergenceError(stage, state.epoch + 1, state.step, loss, state.curve)
    return {"val_accuracy": val["accuracy"], "test_accuracy": test["accuracy"], "test_loss": test["loss"]}
