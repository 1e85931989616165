"""Statistics against scipy and numbers worked out by hand."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from lpslim.experiment.statistics import Summary, paired_difference, summary, verdict

NUMBERS = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20)


def test_summary_by_hand():
    assert summary([1.0, 2.0, 6.0]) == Summary(3.0, math.sqrt((4 + 1 + 9) / 2), 3)
    assert summary([5.0], diverged=2) == Summary(5.0, None, 1, 2)


@given(NUMBERS)
def test_summary_is_numpys(values):
    result = summary(values)
    assert result.mean == pytest.approx(np.mean(values), abs=1e-9)
    assert result.sd == pytest.approx(np.std(values, ddof=1), abs=1e-9)
    assert result.n == len(values)


def test_text_shows_a_deviation_from_three_on():
    assert Summary(93.414, 0.123, 3).text() == "93.41 ± 0.12 (n=3)"
    assert Summary(93.414, 0.123, 2).text() == "93.41 (n=2)"
    assert Summary(93.414, None, 1, 2).text() == "93.41 (n=1) (+2 diverged)"
    assert Summary(93.414, 0.123, 12).text(digits=1) == "93.4 ± 0.1 (n=12)"


def test_a_paired_difference_is_scipys():
    ours, theirs = np.random.default_rng(0).normal(90, 2, (2, 7)).tolist()
    expected = scipy.stats.ttest_rel(ours, theirs).confidence_interval(0.9)
    assert paired_difference(ours, theirs, level=0.9)[1:] == pytest.approx((expected.low, expected.high))


def test_a_paired_difference_by_hand():
    # differences 1 and 3: mean 2, sd sqrt 2, t(0.95, 1) = tan(0.45 pi)
    half = math.tan(0.45 * math.pi)
    assert paired_difference([2.0, 5.0], [1.0, 2.0], level=0.9) == pytest.approx((2, 2 - half, 2 + half))


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf], [1.0]])
def test_what_is_no_sample_is_refused(values):
    with pytest.raises(ValueError, match=r"values|pairs"):
        paired_difference(values, [0.0] * len(values))


@pytest.mark.parametrize(
    ("measured", "expected"),
    [(94.36, "within"), (94.06, "within"), (94.66, "within"), (94.05, "below"), (94.67, "above")],
)
def test_verdict_includes_the_edges_of_the_band(measured, expected):
    assert verdict(measured, 94.36, 0.3) == expected
