"""Sparsity penalties: one module each, with a ``build`` that reads the paper's knobs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

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
