"""The one way accuracy is computed: samples are counted, and divided once."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lpslim.images import Split
from lpslim.modes import evaluating

EVAL_BATCH = 500
PROTOCOLS = ("last", "val", "paper")


@torch.no_grad()
def evaluate(
    model: nn.Module, split: Split, forward: Callable[[Tensor], Tensor] | None = None
) -> dict[str, float]:
    """Return ``accuracy`` in percent and mean cross-entropy ``loss`` over all of ``split``.

    ``forward`` may be a compiled or autocast form of ``model``; every module is left in the mode,
    training or evaluation, in which it came.
    """
    correct = total = 0
    loss = 0.0
    with evaluating(model):
        for images, labels in split.eval_batches(EVAL_BATCH):
            logits = (forward or model)(images).float()
            loss += F.cross_entropy(logits, labels, reduction="sum").item()
            correct += int((logits.argmax(dim=1) == labels).sum())
            total += len(labels)
    return {"accuracy": 100.0 * correct / total, "loss": loss / total}


def summarise(curve: list[dict[str, float]]) -> dict[str, float]:
    """Return the test accuracies that different protocols print, from a training curve.

    ``last``: after the last epoch. ``val``: at the (first) epoch that is best on the
    validation split. ``paper``: the best of all epochs on the test set, as published
    tables mostly do; it is biased upwards.
    """
    best = max(curve, key=lambda row: row["val_accuracy"])
    return {
        "last": curve[-1]["test_accuracy"],
        "val": best["test_accuracy"],
        "paper": max(row["test_accuracy"] for row in curve),
    }
