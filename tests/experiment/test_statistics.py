"""Statistics against numpy and numbers worked out by hand."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from lpslim.experiment.statistics import Summary, paired_difference, summary, verdict


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20))
def test_a_summary_is_numpys(values):
    result = summary(values)
    assert result.mean == pytest.approx(np.mean(values), abs=1e-9)
    assert result.sd == pytest.approx(np.std(values, ddof=1), abs=1e-9)
    assert result.n == len(values)
    assert summary(values[:1]) == Summary(values[0], None, 1)


@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=20))
def test_an_interval_is_scipys_t_interval(values):
    found, error = summary(values), scipy.stats.sem(values)
    low, high = (
        scipy.stats.t.interval(0.95, len(values) - 1, np.mean(values), error) if error else [values[0]] * 2
    )
    assert (found.mean - found.half, found.mean + found.half) == (pytest.approx(low), pytest.approx(high))


def test_differences_are_paired_by_seed():
    first, second = {0: 91.0, 1: 93.0, 2: 90.0, 7: 50.0}, {2: 89.0, 1: 92.0, 0: 90.0, 8: 99.0}
    same = paired_difference(first, second)
    assert (same, same.half) == (Summary(1.0, 0.0, 3), 0.0)  # the seeds differ, the methods alike
    by_hand = paired_difference({0: 1.0, 1: 2.0}, {0: 0.0, 1: 0.0})
    assert (by_hand.mean, by_hand.half) == (1.5, pytest.approx(12.7062 * 0.5, abs=1e-4))
    one = paired_difference(first, {7: 49.0})
    assert (one, one.half) == (Summary(1.0, None, 1), None)
    with pytest.raises(ValueError, match="values"):
        paired_difference(first, {9: 1.0})


def test_text_shows_a_deviation_from_three_on():
    assert Summary(93.414, 0.123, 3).text() == "93.41 ± 0.12"
    assert Summary(93.414, 0.123, 2).text() == Summary(93.414, None, 1).text() == "93.41"


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_what_is_no_sample_is_refused(values):
    with pytest.raises(ValueError, match="values"):
        summary(values)


@pytest.mark.parametrize(
    ("measured", "expected"),
    [(94.36, "within"), (94.06, "within"), (94.66, "within"), (94.05, "below"), (94.67, "above")],
)
def test_verdict_includes_the_edges_of_the_band(measured, expected):
    assert verdict(measured, 94.36, 0.3) == expected
