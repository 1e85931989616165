"""What is asked of a network, and how its answers are marked: one implementation for every stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


def accuracy(answers: Tensor, labels: Tensor) -> float:
    """Return the share of right answers in percent."""
    return 100.0 * int((answers == labels).sum()) / len(labels)


def f1(answers: Tensor, labels: Tensor) -> float:
    """Return the F1 score of class 1 in percent; 0 where no answer is right."""
    from sklearn.metrics import f1_score  # a second to import, which images need not wait for

    return 100.0 * float(f1_score(labels.numpy(), answers.numpy(), zero_division=0.0))


def matthews(answers: Tensor, labels: Tensor) -> float:
    """Return Matthews' correlation coefficient times 100; 0 where all answers are the same."""
    from sklearn.metrics import matthews_corrcoef

    return 100.0 * float(matthews_corrcoef(labels.numpy(), answers.numpy()))


def spearman(answers: Tensor, labels: Tensor) -> float:
    """Return Spearman's rank correlation times 100; 0 where all answers are the same."""
    from scipy.stats import spearmanr

    if bool((answers == answers[0]).all()):
        return 0.0
    return 100.0 * float(spearmanr(answers.numpy(), labels.numpy()).statistic)


METRICS: dict[str, Callable[[Tensor, Tensor], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews": matthews,
    "spearman": spearman,
}


@dataclass(frozen=True)
class Task:
    """A class to be named, or, where the ``metric`` is a correlation of ranks, a number.

    Outputs are (B, classes) logits, or (B, 1); labels (B,) int64, or float.
    """

    metric: str = "accuracy"

    @property
    def regression(self) -> bool:
        """Whether the answer is a number."""
        return self.metric == "spearman"

    def loss(
        self, outputs: Tensor, labels: Tensor, smoothing: float = 0.0, reduction: str = "mean"
    ) -> Tensor:
        """Return the cross-entropy, or the squared error (which knows no label smoothing)."""
        if self.regression:
            return F.mse_loss(outputs.squeeze(-1), labels, reduction=reduction)
        return F.cross_entropy(outputs, labels, label_smoothing=smoothing, reduction=reduction)

    def answers(self, outputs: Tensor) -> Tensor:
        """Return the classes, or the numbers, that the outputs stand for: (B,)."""
        return outputs.squeeze(-1).float() if self.regression else outputs.argmax(dim=1)

    def mark(self, answers: Tensor, labels: Tensor) -> float:
        """Return the metric over all samples, in percent; tensors (N,) on any device."""
        return METRICS[self.metric](answers.cpu(), labels.cpu())


CLASSIFICATION = Task()
