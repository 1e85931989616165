"""How fast a training step is here, in the loop's own arithmetic; and whether torch.compile works here."""

from __future__ import annotations

import gc
import math
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import nn

from lpslim import ranks
from lpslim.config import Config
from lpslim.engine import Hooks, Training, compiled, make_accelerator
from lpslim.keys import digest
from lpslim.plan import architecture_of
from lpslim.recipe import Trainer
from lpslim.splits import Data, example

CPU_BATCH, CPU_NUMBERS = 32, 2**19  # larger batches are cut to so many samples, or inputs of so many numbers
WARM_STEPS, WARM_COMPILED_STEPS = 1, 3  # the first ones pay for set-up; CUDA graphs are recorded in the third
ROUNDS, LEAST_SECONDS = 3, 0.5  # timed at least; the fastest counts, which others disturbed least
SHOWN = 160  # characters of a reason
_known: dict[str, Speed] = {}


@dataclass(frozen=True)
class Speed:
    """Of training: samples per second in one process, and the seconds that its compilation takes first."""

    per_second: float
    compilation: float = 0.0


def circumstances(config: Config, data: Data) -> dict[str, Any]:
    """Return what the speed of the dense network's training depends on, but for what a run may choose."""
    device = make_accelerator(config.trainer).device
    batch = min(config.baseline.batch_size, len(data.train)) // ranks.share().world
    shape = getattr(data.train, "typical_shape", data.shape)
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        batch = min(batch, max(CPU_BATCH, CPU_NUMBERS // math.prod(shape)))
        name = f"cpu, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    return {
        "device": name,
        "torch": torch.__version__,
        "precision": config.trainer.precision,
        "network": asdict(architecture_of(config.model, data)),
        "shape": list(shape),
        "batch": batch,
        "optimizer": config.baseline.optimizer,
    }


def _asked(config: Config, data: Data) -> str:
    chosen = config.trainer
    return digest([circumstances(config, data), chosen.channels_last, chosen.compile, chosen.cuda_graphs])


def remember(config: Config, data: Data, speed: Speed) -> None:
    """Take ``speed`` for that of :func:`measured` from now on in this process."""
    _known[_asked(config, data)] = speed


def measured(config: Config, data: Data) -> Speed:
    """Return how fast the dense network trains, on blank inputs; measured once in a process.

    Of several processes, the one that calls it measures alone. torch's random state is left as it was.
    """
    if (asked := _asked(config, data)) not in _known:
        with ranks.alone(), torch.random.fork_rng():
            _known[asked] = _measured(config, data, circumstances(config, data)["batch"])
        gc.collect()  # what was measured must not take memory from the training
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return _known[asked]


def _measured(config: Config, data: Data, batch: int) -> Speed:
    # a rate of 0 keeps the weights, and so every loss a number
    recipe = replace(config.baseline, epochs=1, warmup_epochs=0.0, batch_size=batch, lr=0.0)
    training = Training(architecture_of(config.model, data).build(), data, recipe, config.trainer, Hooks())
    training.model.train()
    inputs = example(getattr(data.train, "typical_shape", data.shape), batch).to(training.device)
    kind = torch.float32 if data.task.regression else torch.long
    labels = torch.zeros(batch, dtype=kind, device=training.device)

    def seconds(steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            training.step(inputs, labels)
        float(training.progress.loss_sum)  # waits for the accelerator
        return time.perf_counter() - began

    warm = WARM_COMPILED_STEPS if config.trainer.compile else WARM_STEPS
    first = seconds(warm)
    rounds: list[float] = []
    while len(rounds) < ROUNDS or sum(rounds) < LEAST_SECONDS:
        rounds.append(seconds(training.check_every) / training.check_every)
    step = min(rounds)
    return Speed(batch / step, max(0.0, first - warm * step) if config.trainer.compile else 0.0)


@cache
def compile_fault(device: str, precision: str, cuda_graphs: bool) -> str:
    """Return in a few words why torch.compile does not work here, empty if it does.

    A tiny network is compiled and does a step: seconds, or half a minute where it was never done before.
    """
    trainer = Trainer(device=device, precision=precision, compile=True, cuda_graphs=cuda_graphs)
    with ranks.alone(), torch.random.fork_rng():
        accelerator = make_accelerator(trainer)
        layers = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        model = accelerator.prepare_model(nn.Sequential(*layers), evaluation_mode=True)
        try:
            outputs = compiled(model, trainer, images=True)(
                torch.zeros(2, 3, 8, 8, device=accelerator.device)
            )
            accelerator.backward(outputs.float().sum())
        except Exception as problem:  # a compiler, a library, Python, a driver: each fails in its own way
            return reason(problem)
    return ""


def reason(problem: Exception) -> str:
    """Return the first line of what lies behind an exception of the compiler's."""
    cause = getattr(problem, "inner_exception", problem)
    words = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return (words[0] if words else type(cause).__name__)[:SHOWN]


@contextmanager
def empty_cache() -> Iterator[None]:
    """Let torch.compile find no kernels of former times in the block: what it takes is then what it costs."""
    name = "TORCHINDUCTOR_CACHE_DIR"
    before = os.environ.get(name)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ[name] = folder
        try:
            yield
        finally:
            os.environ.pop(name)
            if before is not None:
                os.environ[name] = before
