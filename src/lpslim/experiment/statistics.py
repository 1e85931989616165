"""Statistics of a table cell: mean, deviation, comparison with a published value."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

SPREAD_FROM = 3  # values; a deviation of fewer says more than is known
ROUNDING = 1e-9  # a difference of two decimals is not exact in binary


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (n - 1; None for one value) of n values, in their unit."""

    mean: float
    sd: float | None
    n: int

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


def verdict(measured: float, published: float, band: float) -> Literal["within", "below", "above"]:
    """Return where a measured mean lies: within published ± band (edges included), below or above."""
    difference = measured - published
    if abs(difference) <= band + ROUNDING:
        return "within"
    return "below" if difference < 0 else "above"
