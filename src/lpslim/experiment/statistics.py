"""Statistics of a table cell: mean, deviation, comparison with a published value, paired difference."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

SPREAD_FROM = 3  # values; a deviation of fewer says more than is known
ROUNDING = 1e-9  # a difference of two decimals is not exact in binary


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (n - 1; None for one value) of n values, in their unit.

    diverged: number of further runs, whose loss was not finite and which gave no value.
    """

    mean: float
    sd: float | None
    n: int
    diverged: int = 0

    def text(self, digits: int = 2) -> str:
        """Return ``93.41 ± 0.12 (n=3)``, or ``93.41 (n=1) (+2 diverged)`` below n = 3."""
        spread = f" ± {self.sd:.{digits}f}" if self.sd is not None and self.n >= SPREAD_FROM else ""
        diverged = f" (+{self.diverged} diverged)" if self.diverged else ""
        return f"{self.mean:.{digits}f}{spread} (n={self.n}){diverged}"


def summary(values: Sequence[float], diverged: int = 0) -> Summary:
    """Return the summary of ``values`` (n,); ValueError if there is none, or one is not finite."""
    if not values or not all(map(math.isfinite, values)):
        raise ValueError(f"values={values}: needs finite numbers, one at least")
    sd = statistics.stdev(values) if len(values) > 1 else None
    return Summary(statistics.fmean(values), sd, len(values), diverged)


def paired_difference(
    ours: Sequence[float], theirs: Sequence[float], level: float = 0.95
) -> tuple[float, float, float]:
    """Return the mean of ours - theirs (n,), such as runs of equal seeds, and its t interval (low, high).

    The interval is mean ± t(level, n - 1) * sd / sqrt(n) (Student 1908, doi:10.1093/biomet/6.1.1). ValueError
    for fewer than two pairs, or a value that is not finite.
    """
    from scipy.stats import t

    difference = summary([one - other for one, other in zip(ours, theirs, strict=True)])
    if difference.sd is None:
        raise ValueError("an interval needs two pairs at least")
    half = float(t.ppf((1 + level) / 2, difference.n - 1)) * difference.sd / math.sqrt(difference.n)
    return difference.mean, difference.mean - half, difference.mean + half


def verdict(measured: float, published: float, band: float) -> Literal["within", "below", "above"]:
    """Return where a measured mean lies: within published ± band (edges included), below or above."""
    difference = measured - published
    if abs(difference) <= band + ROUNDING:
        return "within"
    return "below" if difference < 0 else "above"
