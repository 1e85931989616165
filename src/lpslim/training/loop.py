"""Training loop: epochs of optimiser steps with a callback, evaluated after each, resumable at any step."""

import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from accelerate.utils import broadcast, gather_object, reduce
from torch import Tensor, nn
from tqdm import tqdm

from lpslim.base.errors import DivergenceError
from lpslim.base.files import derive_seed
from lpslim.data.splits import Batch, Data
from lpslim.training import distributed
from lpslim.training.callbacks import Callback
from lpslim.training.checkpoint import Checkpoint
from lpslim.training.evaluation import evaluate
from lpslim.training.schedule import RuntimeConfig, TrainConfig, learning_rate

log = logging.getLogger(__name__)
GPU_CHECK_STEPS = 10  # steps between two looks at the losses, for which a GPU has to be waited for


@dataclass
class TrainState:
    """Progress of a training, as a checkpoint holds it.

    parts: model, optimizer, callback. epoch: finished epochs; curve: their rows. step, loss_sum: of the
    current epoch so far. generators: states of the random generators, by process, to go on from.
    """

    seed: int
    stage: str
    parts: dict[str, Any]
    epoch: int = 0
    step: int = 0
    loss_sum: Tensor | float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)
    generators: list[list[Tensor]] = field(default_factory=list)

    def batches(self, data: Data, batch_size: int) -> Iterator[Batch]:
        """Yield the rest of the current epoch, whose draws follow from (seed, stage, epoch) alone."""
        share, order = distributed.share(), derive_seed(self.seed, self.stage, "batches", self.epoch)
        apart = [share.rank] if share.rank else []  # the first draws what a run of one process would
        torch.manual_seed(derive_seed(self.seed, self.stage, "forward", self.epoch, *apart))  # of dropout
        batches = data.train.train_batches(batch_size, order, share)
        for _ in islice(batches, self.step):  # those before a checkpoint are drawn again
            pass
        if self.generators:
            cpu, *cuda = self.generators[share.rank]
            torch.set_rng_state(cpu)
            for state in cuda:
                torch.cuda.set_rng_state(state)
            self.generators = []
        yield from batches

    def check(self, losses: Sequence[float]) -> None:
        """Raise a DivergenceError for the first of the last steps' losses that is not finite."""
        for step, loss in enumerate(losses, self.step - len(losses) + 1):
            if not math.isfinite(loss):
                raise DivergenceError(self.stage, self.epoch + 1, step, loss, self.curve)

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint; all processes must call this."""
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        on_gpu = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        own = [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if on_gpu else [])]
        state = {**vars(self), "parts": parts, "generators": gather_object([own])}
        distributed.broadcast_from_main(lambda: checkpoint.save(state))

    def load(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint, if there is one that as many processes wrote."""
        state = checkpoint.load()
        writers = gather_object([len(state["generators"]) if state else 0])
        if not state or set(writers) != {distributed.share().world}:
            if any(writers) and distributed.is_main():
                log.info("begins anew: the checkpoint is of %d processes", max(writers))
            return
        for name, saved in state.pop("parts").items():
            self.parts[name].load_state_dict(saved)
        vars(self).update(state)
        if distributed.is_main():
            log.info("goes on after epoch %d, step %d", self.epoch, self.step)


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return the configured optimiser of all parameters."""
    parameters, decay = list(model.parameters()), config.weight_decay
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, config.lr, config.momentum, weight_decay=decay, foreach=True)
    kernels, others = ([p for p in parameters if (p.ndim > 1) is decayed] for decayed in (True, False))
    groups = [{"params": kernels, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, config.lr, (config.momentum, 0.999), foreach=True)


def recorded(model: nn.Module, inputs: Tensor, precision: str) -> Any:
    """Return a network in training whose two passes are replayed as CUDA graphs, for inputs of one shape.

    The kernels are the same; a small network's take less time than the processor needs to launch them one by
    one. Its parameters must stay where they are in memory.
    """
    warnings.filterwarnings("ignore", "The AccumulateGrad node's stream")  # it was made while recording
    buffers = [buffer.clone() for buffer in model.buffers()]
    wrapped = nn.Sequential(model.train())  # whose forward is replaced, in place of the model's own
    with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16", cache_enabled=False):
        forward: Any = torch.cuda.make_graphed_callables(wrapped, (inputs,))
    for buffer, before in zip(model.buffers(), buffers, strict=True):
        buffer.copy_(before)  # the statistics of batch-norm have seen the passes that were recorded
    return forward


def fit(
    model: nn.Module, data: Data, config: TrainConfig, runtime: RuntimeConfig, *, seed: int, stage: str,
    callback: Callback | None = None, after_epoch: Callable[[dict[str, float]], None] = lambda row: None,
    checkpoint: Checkpoint | None = None,
) -> list[dict[str, float]]:  # fmt: skip
    """Train ``model`` in place, leave it on the CPU, and return one row of measurements per epoch.

    Rows hold epoch (from 1), lr, train_loss, val_accuracy (unless that split is empty), test_accuracy (the
    task's metric in percent), test_loss and seconds; ``after_epoch`` is called with each, also with those
    from before a checkpoint. Several processes must call this together. DivergenceError: a loss is not
    finite; UserError: the device is not there.
    """
    runtime, callback, images = distributed.resolved(runtime), callback or Callback(), len(data.shape) == 3
    accelerator = distributed.make_accelerator(runtime)
    device, data, share = accelerator.device, data.to(accelerator.device), distributed.share()
    layout = torch.channels_last if runtime.channels_last and images else torch.contiguous_format
    model.to(device).to(memory_format=layout)
    if share.world > 1 and device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    forward = accelerator.prepare_model(model)
    if runtime.compile:
        torch.compiler.reset()  # what was compiled before would change the bits of this training
        forward = torch.compile(forward, dynamic=not images)
    batch_size, unchecked = min(config.batch_size, len(data.train)), []
    if runtime.cuda_graphs:
        inputs = torch.zeros(batch_size, *data.shape, device=device).to(memory_format=layout)
        forward = recorded(model, inputs, runtime.precision)
    optimizer = make_optimizer(model, config)
    callback.begin()
    state = TrainState(seed, stage, {"model": model, "optimizer": optimizer, "callback": callback})
    if checkpoint:
        state.load(checkpoint)
    for row in state.curve:
        after_epoch(row)
    steps, check_steps = len(data.train) // batch_size, 1 if device.type == "cpu" else GPU_CHECK_STEPS
    bar = tqdm(total=config.epochs * steps, initial=state.epoch * steps + state.step, desc=stage,
               disable=None if distributed.is_main() else True, dynamic_ncols=True, leave=False)  # fmt: skip
    while state.epoch < config.epochs:
        began = time.perf_counter()
        model.train()
        for inputs, targets in state.batches(data, batch_size):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, state.epoch + (state.step + 0.5) / steps)
            with torch.autocast(device.type, torch.bfloat16, enabled=runtime.precision == "bf16"):
                outputs = forward(inputs.contiguous(memory_format=layout))
                loss = data.task.loss(outputs.float(), targets, config.label_smoothing)
            loss.backward()  # type: ignore[no-untyped-call]
            if config.clip_norm:
                nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            callback.after_backward()  # a penalty's gradient is not bounded
            optimizer.step()
            optimizer.zero_grad()
            state.step += 1
            unchecked.append(reduce(loss.detach()))  # the same bits in every process
            state.loss_sum = state.loss_sum + unchecked[-1]
            callback.after_step(state.epoch * steps + state.step, steps)
            bar.update()
            if state.step % check_steps == 0 or state.step == steps:
                state.check(torch.stack(unchecked).tolist())
                unchecked.clear()
                if checkpoint and distributed.broadcast_from_main(lambda: checkpoint.due):
                    state.save(checkpoint)
        broadcast(list(model.buffers()))  # such as the statistics of batch-norm
        splits = {"val": data.val, "test": data.test} if len(data.val) else {"test": data.test}
        scores = {name: evaluate(model, splits[name], task=data.task, share=share) for name in splits}
        state.check([sum(score["loss"] for score in scores.values())])  # finite if all are
        accuracies = {f"{name}_accuracy": score["accuracy"] for name, score in scores.items()}
        row = {"epoch": state.epoch + 1, "lr": optimizer.param_groups[0]["lr"],
               "train_loss": float(state.loss_sum) / steps, **accuracies,
               "test_loss": scores["test"]["loss"], "seconds": time.perf_counter() - began}  # fmt: skip
        state.curve.append(row)
        state.epoch, state.step, state.loss_sum = state.epoch + 1, 0, 0.0
        after_epoch(row)
        if distributed.is_main():
            rest = "".join(f"{name} {score['accuracy']:.2f} %, " for name, score in scores.items())
            head = f"{stage} epoch {state.epoch}/{config.epochs}: loss {row['train_loss']:.4f}"
            log.info(f"{head}, {rest}{row['seconds']:.0f} s")
    bar.close()
    model.to("cpu")
    return state.curve
