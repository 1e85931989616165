"""Metrics against their formulas, and the losses behind them."""

import math

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from lpslim.data.metrics import METRICS, Task, accuracy, f1, matthews, spearman

pairs = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=2, max_size=40)


def columns(rows):
    answers, labels = zip(*rows, strict=True)
    return torch.tensor(answers), torch.tensor(labels)


def confusion(answers, labels):
    return [int(((answers == a) & (labels == t)).sum()) for a, t in ((1, 1), (1, 0), (0, 1), (0, 0))]


@given(pairs)
def test_f1_is_the_harmonic_mean_of_precision_and_recall(rows):
    tp, fp, fn, _ = confusion(*columns(rows))
    assert f1(*columns(rows)) == pytest.approx(200 * tp / (2 * tp + fp + fn) if tp else 0.0)


@given(pairs)
def test_matthews_is_the_correlation_of_two_zero_one_columns(rows):
    tp, fp, fn, tn = confusion(*columns(rows))
    spread = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert matthews(*columns(rows)) == pytest.approx(100 * (tp * tn - fp * fn) / spread if spread else 0.0)


@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(0, 5)), min_size=3, max_size=30))
def test_spearman_is_pearsons_correlation_of_mean_ranks(rows):
    answers, labels = (column.float() for column in columns(rows))
    ranks = [scipy.stats.rankdata(column.numpy()) for column in (answers, labels)]
    if min(r.std() for r in ranks) == 0:
        return
    assert spearman(answers, labels) == pytest.approx(100 * np.corrcoef(*ranks)[0, 1], abs=1e-6)


def test_spearman_of_a_constant_answer_is_zero_not_nan():
    assert spearman(torch.ones(5), torch.arange(5.0)) == 0.0


@pytest.mark.parametrize("metric", ["accuracy", "f1", "matthews"])
def test_agrees_with_scikit_learn_on_many_samples(metric):
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(500, generator=generator) < 0.7).long()
    answers = torch.where(torch.rand(500, generator=generator) < 0.2, 1 - labels, labels)
    judge = {"accuracy": sklearn.metrics.accuracy_score, "f1": sklearn.metrics.f1_score,
             "matthews": sklearn.metrics.matthews_corrcoef}[metric]  # fmt: skip
    assert METRICS[metric](answers, labels) == pytest.approx(100 * judge(labels, answers))


def test_accuracy_counts_samples():
    assert accuracy(torch.tensor([0, 1, 2]), torch.tensor([0, 1, 1])) == pytest.approx(200 / 3)


class TestTask:
    def test_a_class_is_the_largest_logit_and_costs_cross_entropy(self):
        task, logits, labels = Task(), torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0])
        assert task.answers(logits).tolist() == [0, 1]
        expected = F.cross_entropy(logits, labels, label_smoothing=0.1)
        assert torch.equal(task.loss(logits, labels, 0.1), expected)
        assert task.mark(task.answers(logits), labels) == 50.0

    def test_a_number_is_the_output_and_costs_its_squared_error(self):
        task, outputs, labels = Task("spearman"), torch.tensor([[1.0], [4.0]]), torch.tensor([2.0, 2.0])
        assert task.regression
        assert task.answers(outputs).tolist() == [1.0, 4.0]
        assert task.loss(outputs, labels, 0.1).item() == pytest.approx(2.5)
        assert task.loss(outputs, labels, reduction="sum").item() == pytest.approx(5.0)
