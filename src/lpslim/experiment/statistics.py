"""Statistics of a table cell: mean, deviation, confidence interval, comparison with a published value."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from scipy.special import stdtrit

SPREAD_FROM = 3  # values; a deviation of fewer says more than is known
ROUNDING = 1e-9  # a difference of two decimals is not exact in binary


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (n - 1; None for one value) of n values, in their unit."""

    mean: float
    sd: float | None
    n: int

    @property
    def half(self) -> float | None:
        """Half of the mean's 95 % confidence interval by Student's t; None for one value."""
        return None if self.sd is None else float(stdtrit(self.n - 1, 0.975)) * self.sd / math.sqrt(self.n)

    def text(self) -> str:
        """Return ``93.41 ± 0.12``, or ``93.41`` below n = 3."""
        spread = f" ± {self.sd:.2f}" if self.sd is not None and self.n >= SPREAD_FROM else ""
        return f"{self.mean:.2f}{spread}"


def summary(values: Sequence[float]) -> Summary:
    """Return the summary of ``values`` (n,); ValueError if there is none, or one is not finite."""
    if not values or not all(map(math.isfinite, values)):
        raise ValueError(f"values={values}: needs finite numbers, one at least")
    n, mean = len(values), math.fsum(values) / len(values)
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1)) if n > 1 else None
    return Summary(mean, sd, n)


def paired_difference(first: Mapping[int, float], second: Mapping[int, float]) -> Summary:
    """Return first minus second, seed by seed, over the seeds of both (ValueError: there is none)."""
    return summary([first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())])


def verdict(measured: float, published: float, band: float) -> Literal["within", "below", "above"]:
    """Return where a measured mean lies: within published ± band (edges included), below or above."""
    difference = measured - published
    if abs(difference) <= band + ROUNDING:
        return "within"
    return "below" if difference < 0 else "above"
