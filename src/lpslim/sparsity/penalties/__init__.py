"""Sparsity penalties: one module each, with a ``build`` that reads the paper's knobs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from torch import Tensor


class Penalty(Protocol):
    """What the ADMM asks of a penalty."""

    def proximal(self, x: list[Tensor], z: list[Tensor], strength: float) -> Iterator[Tensor]:
        """Yield the new Z of each tensor, for x = W + U, the last z and strength = lamb / rho.

        Tensor by tensor, so that no second copy of all weights is ever alive.
        """
        ...

    def capped(self, z: Tensor) -> Tensor:
        """Return how many entries of z have their weight limited by the cap M (0-d tensor)."""
        ...


@runtime_checkable
class Linearised(Penalty, Protocol):
    """A penalty whose Z-step is soft(x, strength * w(z)), entry by entry: it can be done in blocks."""

    @property
    def knee(self) -> float:
        """The |z| below which the cap M binds."""
        ...

    def weight(self, z: Tensor) -> Tensor:
        """Return the weight w of each entry; same shape as z."""
        ...

    def flat_below(self, eps: float) -> float:
        """Return a size below which every |z| has the weight of zero, computed with rounding error eps."""
        ...
