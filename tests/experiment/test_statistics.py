"""Closed forms, and scipy as the other implementation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from lpslim.experiment.statistics import Summary, bootstrap_interval, summary, verdict

NUMBERS = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20)


def test_summary_by_hand():
    assert summary([1.0, 2.0, 6.0]) == Summary(3.0, math.sqrt((4 + 1 + 9) / 2), 3)
    assert summary([5.0]) == Summary(5.0, None, 1)


@pytest.mark.filterwarnings("ignore:Precision loss:RuntimeWarning")
@given(NUMBERS)
def test_summary_is_scipys(values):
    result = summary(values)
    assert result.mean == pytest.approx(scipy.stats.tmean(values), abs=1e-9)
    assert result.sd == pytest.approx(scipy.stats.tstd(values), abs=1e-9)
    assert result.n == len(values)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20))
def test_summary_is_numpys_to_the_last_bit_also_where_it_does_without(values):
    result = summary(values)
    assert result.mean == np.mean(values)
    assert result.sd == (np.std(values, ddof=1) if len(values) > 1 else None)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf], [[1.0], [2.0]]])
def test_summary_needs_finite_numbers(values):
    with pytest.raises(ValueError, match="values"):
        summary(values)
    with pytest.raises(ValueError, match="values"):
        bootstrap_interval(values)


def test_text_shows_a_deviation_from_three_on():
    assert Summary(93.414, 0.123, 3).text() == "93.41 ± 0.12 (n=3)"
    assert Summary(93.414, 0.123, 2).text() == "93.41 (n=2)"
    assert Summary(93.414, None, 1).text() == "93.41 (n=1)"
    assert Summary(93.414, 0.123, 12).text(digits=1) == "93.4 ± 0.1 (n=12)"


def test_bootstrap_is_scipys():
    values = np.random.default_rng(1).normal(93, 0.5, size=30)
    low, high = bootstrap_interval(list(values), resamples=20_000)
    other = scipy.stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=2)
    assert low == pytest.approx(other.confidence_interval.low, abs=0.01)
    assert high == pytest.approx(other.confidence_interval.high, abs=0.01)


def test_bootstrap_against_the_normal_interval():
    values = list(np.random.default_rng(3).normal(0, 1, size=400))
    low, high = bootstrap_interval(values, level=0.9)
    half = 1.6449 * np.std(values) / 20
    assert [low, high] == pytest.approx([np.mean(values) - half, np.mean(values) + half], abs=0.01)


def test_bootstrap_of_two_values_by_hand():
    # the mean of two draws from {0, 1} is 0, 1/2, 1 with probability 1/4, 1/2, 1/4
    assert bootstrap_interval([0.0, 1.0], level=0.95) == (0.0, 1.0)
    assert bootstrap_interval([0.0, 1.0], level=0.4) == (0.5, 0.5)
    assert bootstrap_interval([7.0]) == (7.0, 7.0)


def test_bootstrap_depends_on_the_seed_alone():
    values = [93.1, 93.4, 92.9, 93.7]
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(values, resamples=50) != bootstrap_interval(values, resamples=50, seed=1)


@pytest.mark.parametrize("wrong", [{"level": 0.0}, {"level": 1.0}, {"resamples": 0}])
def test_bootstrap_refuses(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        bootstrap_interval([1.0, 2.0], **wrong)


@pytest.mark.parametrize(
    ("measured", "expected"),
    [(94.36, "within"), (94.06, "within"), (94.66, "within"), (94.05, "below"), (94.67, "above")],
)
def test_verdict_includes_the_edges_of_the_band(measured, expected):
    assert verdict(measured, 94.36, 0.3) == expected


def test_verdict_refuses_a_negative_band():
    with pytest.raises(ValueError, match="band=-1"):
        verdict(1.0, 1.0, -1)
