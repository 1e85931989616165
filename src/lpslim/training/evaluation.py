"""The one way accuracy is computed: over all samples at once, never a mean over batches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lpslim.base.modules import evaluating
from lpslim.data.metrics import CLASSIFICATION, Task
from lpslim.data.splits import WHOLE, Share, Split
from lpslim.training.loop import distributed

EVAL_BATCH = 500


@torch.no_grad()
def evaluate(
    model: nn.Module,
    split: Split,
    forward: Callable[[Tensor], Tensor] | None = None,
    *,
    task: Task = CLASSIFICATION,
    share: Share = WHOLE,
) -> dict[str, float]:
    """Return the task's metric in percent as ``accuracy``, and the mean ``loss``, over all of ``split``.

    ``forward`` may be a compiled or autocast form of ``model``; every module is left in the mode,
    training or evaluation, in which it came. With a ``share``, every process must be here: each evaluates
    its own, and all get the result of the whole.
    """
    answers, truths = [], []
    loss = 0.0
    with evaluating(model):
        for inputs, labels in split.eval_batches(EVAL_BATCH, share):
            outputs = (forward or model)(inputs).float()
            loss += task.loss(outputs, labels, reduction="sum").item()
            answers.append(task.answers(outputs))
            truths.append(labels)
    if share.world > 1:
        answers, truths = [ranks.joined(answers)], [ranks.joined(truths)]
        loss = sum(ranks.gathered([loss]))
    return {"accuracy": task.mark(torch.cat(answers), torch.cat(truths)), "loss": loss / len(split)}


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
