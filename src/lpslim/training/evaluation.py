"""Evaluation of a network over all samples at once, always in float32."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.utils import gather_object
from torch import nn

from lpslim.base.modules import eval_mode
from lpslim.data.metrics import Task
from lpslim.data.splits import WHOLE, Batch, Share, Split

EVAL_BATCH = 500


@torch.no_grad()
def evaluate(model: nn.Module, split: Split, *, task: Task, share: Share = WHOLE) -> dict[str, float]:
    """Return the metric in percent as ``accuracy``, and the mean ``loss``, over all of ``split``.

    Computed in float32, without TF32 or autocast, whatever trained the network. With a ``share``, all
    processes must call this: each evaluates its own, and gets the result of the whole split.
    """
    loss = 0.0
    pairs: list[Batch] = []
    with eval_mode(model), _float32():
        for inputs, targets in split.eval_batches(EVAL_BATCH, share):
            outputs = model(inputs)
            loss += task.loss(outputs, targets, reduction="sum").item()
            pairs.append((task.preds(outputs).cpu(), targets.cpu()))
    if share.world > 1:
        loss, pairs = sum(gather_object([loss])), gather_object(pairs)
    preds, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return {"accuracy": task.function(preds, labels), "loss": loss / len(split)}


@contextmanager
def _float32() -> Iterator[None]:
    matmul, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = cudnn


def summarise(curve: list[dict[str, float]]) -> dict[str, float]:
    """Return the test accuracy of a training curve by protocol; no ``val`` without a validation split.

    ``last``: after the last epoch. ``val``: at the first epoch that is best on the validation split.
    ``paper``: best of all epochs on the test split, as most published tables have it; biased upwards.
    """
    accuracies = [row["test_accuracy"] for row in curve]
    result = {"last": accuracies[-1], "paper": max(accuracies)}
    if "val_accuracy" in curve[0]:
        result["val"] = max(curve, key=lambda row: row["val_accuracy"])["test_accuracy"]
    return result
