"""Tasks and metrics: the loss that a network is trained by, and the metric that it is evaluated by."""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


def accuracy(preds: Tensor, targets: Tensor) -> float:
    """Return the share of correct predictions in percent."""
    return 100.0 * int((preds == targets).sum()) / len(targets)


def f1(preds: Tensor, targets: Tensor) -> float:
    """Return the F1 score of class 1 in percent; 0 where precision and recall are 0."""
    from sklearn.metrics import f1_score  # takes a second to import, which image tasks need not wait for

    return 100.0 * float(f1_score(targets.numpy(), preds.numpy(), zero_division=0.0))


def matthews(preds: Tensor, targets: Tensor) -> float:
    """Return Matthews' correlation coefficient in percent; 0 where all predictions are equal."""
    from sklearn.metrics import matthews_corrcoef

    return 100.0 * float(matthews_corrcoef(targets.numpy(), preds.numpy()))


def spearman(preds: Tensor, targets: Tensor) -> float:
    """Return Spearman's rank correlation in percent; 0 where all predictions, or all targets, are equal."""
    from scipy.stats import spearmanr

    if any(bool((values == values[0]).all()) for values in (preds, targets)):
        return 0.0
    return 100.0 * float(spearmanr(preds.numpy(), targets.numpy()).statistic)


@dataclass(frozen=True)
class Task:
    """A classification, or with ``regression`` the prediction of a number, and its metric.

    metric: its name in records. function: (preds (N,), targets (N,)), both on the CPU, to percent.
    Outputs are logits (B, classes) and targets int64 (B,); of a regression (B, 1) and float (B,).
    """

    metric: str
    function: Callable[[Tensor, Tensor], float]
    regression: bool = False

    def loss(self, outputs: Tensor, targets: Tensor, smoothing: float = 0, reduction: str = "mean") -> Tensor:
        """Return the cross-entropy; of a regression the squared error, without label smoothing."""
        if self.regression:
            return F.mse_loss(outputs.squeeze(-1), targets, reduction=reduction)
        return F.cross_entropy(outputs, targets, label_smoothing=smoothing, reduction=reduction)

    def preds(self, outputs: Tensor) -> Tensor:
        """Return the predicted classes, or numbers, (B,)."""
        return outputs.squeeze(-1).float() if self.regression else outputs.argmax(dim=1)


CLASSIFICATION = Task("accuracy", accuracy)
OTHERS = (Task("f1", f1), Task("matthews", matthews), Task("spearman", spearman, regression=True))
TASKS = {task.metric: task for task in (CLASSIFICATION, *OTHERS)}
