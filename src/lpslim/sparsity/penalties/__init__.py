"""Sparsity penalties: one module each, with a ``build`` that returns the penalty.

Of ``build``'s parameters, ``p``, ``M`` and ``ratio`` are the paper's knobs; any others are the penalty's own.
"""

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor


class Penalty(Protocol):
    """Penalty on Z as the ADMM uses it: its proximal map, its cap, and its short name for tables."""

    def proximal(self, x: list[Tensor], z: list[Tensor], strength: float) -> Iterator[Tensor]:
        """Yield the new Z tensor by tensor (no second copy of all); x = W + U, strength = lamb / rho."""

    def capped(self, z: Tensor) -> Tensor:
        """Return the number of entries of z whose weight is limited by the cap M (0-d tensor)."""

    def __str__(self) -> str: ...
