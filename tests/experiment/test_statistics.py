"""Statistics against numpy and numbers worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpslim.experiment.statistics import Summary, summary, verdict


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20))
def test_a_summary_is_numpys(values):
    result = summary(values)
    assert result.mean == pytest.approx(np.mean(values), abs=1e-9)
    assert result.sd == pytest.approx(np.std(values, ddof=1), abs=1e-9)
    assert result.n == len(values)
    assert summary(values[:1]) == Summary(values[0], None, 1)


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
