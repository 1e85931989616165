"""Statistics over seeds: mean, sample deviation, bootstrap interval, band. Pure numpy."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import numpy as np

SPREAD_FROM = 3  # runs; with fewer, a deviation says more than is known
FEW = 8  # of fewer values, numpy takes six times as long for the same bits
ROUNDING = 1e-9  # a difference of two decimals is not exact in binary

Verdict = Literal["within", "below", "above"]


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (n - 1; None for a single value) of n values, in their unit.

    diverged: how many more runs there were, whose loss became no number, and which gave no value.
    """

    mean: float
    sd: float | None
    n: int
    diverged: int = 0

    def text(self, digits: int = 2) -> str:
        """Return ``93.41 ± 0.12 (n=3)``, or ``93.41 (n=1) (+2 diverged)`` below n = 3."""
        number = f"{self.mean:.{digits}f}"
        if self.sd is not None and self.n >= SPREAD_FROM:
            number += f" ± {self.sd:.{digits}f}"
        return f"{number} (n={self.n})" + (f" (+{self.diverged} diverged)" if self.diverged else "")


def summary(values: Sequence[float]) -> Summary:
    """Return mean, sample standard deviation and number of ``values`` (n,).

    Raises:
        ValueError: there is no value, or one is not finite.
    """
    n = len(values)
    if not 0 < n < FEW or not all(isinstance(value, float) and math.isfinite(value) for value in values):
        array = _finite(values)
        return Summary(float(array.mean()), float(array.std(ddof=1)) if n > 1 else None, n)
    mean = _in_order(values) / n
    squares = [(value - mean) * (value - mean) for value in values]
    return Summary(mean, math.sqrt(_in_order(squares) / (n - 1)) if n > 1 else None, n)


def bootstrap_interval(
    values: Sequence[float], *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean of ``values`` (n,), in their unit.

    The same values and seed give the same interval. With a handful of values it is too narrow.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.

    Raises:
        ValueError: there is no value, one is not finite, ``level`` is not between 0 and 1, or
            ``resamples`` is not positive.
    """
    array = _finite(values)
    if not 0 < level < 1:
        raise ValueError(f"level={level}: must be between 0 and 1")
    if resamples < 1:
        raise ValueError(f"resamples={resamples}: must be 1 or more")
    drawn = np.random.default_rng(seed).integers(len(array), size=(resamples, len(array)))
    tail = (1 - level) / 2
    low, high = np.quantile(array[drawn].mean(axis=1), [tail, 1 - tail])
    return float(low), float(high)


def verdict(measured_mean: float, published: float, band: float) -> Verdict:
    """Return whether a measured mean is ``within`` published ± band (edges included), ``below`` or ``above``.

    Raises:
        ValueError: ``band`` is negative.
    """
    if band < 0:
        raise ValueError(f"band={band}: must be 0 or more")
    difference = measured_mean - published
    if abs(difference) <= band + ROUNDING:
        return "within"
    return "below" if difference < 0 else "above"


def _in_order(values: Sequence[float]) -> float:
    """Return the sum, rounded after each term as numpy does for few; Python's own depends on its version."""
    return float(reduce(operator.add, values))


def _finite(values: Sequence[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    array = np.array(values, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        raise ValueError("values: at least one number is needed")
    if not np.isfinite(array).all():
        raise ValueError(f"values={values}: all must be finite")
    return array
