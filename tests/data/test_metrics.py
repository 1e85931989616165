"""Metrics against their formulas and scikit-learn's; losses against PyTorch's."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from lpslim.data.metrics import CLASSIFICATION, TASKS, Task, accuracy, f1, matthews, spearman

pairs = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=2, max_size=40)


def columns(rows):
    preds, targets = zip(*rows, strict=True)
    return torch.tensor(preds), torch.tensor(targets)


@pytest.mark.filterwarnings("ignore:A single label was found")
@given(pairs)
def test_metrics_of_two_classes_equal_their_formulas(rows):
    preds, targets = columns(rows)
    tp, fp, fn, tn = (int(((preds == p) & (targets == t)).sum()) for p, t in ((1, 1), (1, 0), (0, 1), (0, 0)))
    assert accuracy(preds, targets) == 100 * (tp + tn) / len(rows)
    assert f1(preds, targets) == pytest.approx(200 * tp / (2 * tp + fp + fn) if tp else 0.0)
    spread = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert matthews(preds, targets) == pytest.approx(100 * (tp * tn - fp * fn) / spread if spread else 0.0)


@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(0, 5)), min_size=3, max_size=30))
def test_spearman_is_pearsons_correlation_of_mean_ranks(rows):
    preds, targets = (column.float() for column in columns(rows))
    ranks = [scipy.stats.rankdata(column.numpy()) for column in (preds, targets)]
    if min(rank.std() for rank in ranks) > 0:
        assert spearman(preds, targets) == pytest.approx(100 * np.corrcoef(*ranks)[0, 1], abs=1e-6)
    assert spearman(torch.ones(5), torch.arange(5.0)) == 0.0  # and not NaN
    assert spearman(torch.arange(5.0), torch.ones(5)) == 0.0


def test_a_class_is_the_largest_logit_at_cross_entropy_a_regression_the_output_at_its_squared_error():
    task, logits, targets = CLASSIFICATION, torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0])
    assert task.preds(logits).tolist() == [0, 1]
    assert torch.equal(task.loss(logits, targets, 0.1), F.cross_entropy(logits, targets, label_smoothing=0.1))
    assert task.loss(logits, targets, reduction="none").shape == (2,)
    assert task.function(task.preds(logits), targets) == 50.0
    task, outputs, targets = TASKS["spearman"], torch.tensor([[1.0], [4.0]]), torch.tensor([2.0, 2.0])
    assert task.preds(outputs).tolist() == [1.0, 4.0]
    assert task.loss(outputs, targets, 0.1).item() == pytest.approx(2.5)  # no label smoothing
    assert task.loss(outputs, targets, reduction="sum").item() == pytest.approx(5.0)
    names = ["accuracy", "f1", "matthews", "spearman"]
    assert [*TASKS] == [task.metric for task in TASKS.values()] == names
    task = Task("mae", lambda preds, targets: float((preds - targets).abs().mean()), regression=True)
    assert task.function(task.preds(outputs), targets) == 1.5
