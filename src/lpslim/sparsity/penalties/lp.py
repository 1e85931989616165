"""The |z|^q penalties of the paper (Ji et al., Pattern Recognition 2025, article 111711): Lp, L1 and L0.

The knob ``p`` is the denominator: q = 1/p, so that p = 5 means |z|^(1/5); p = 0 stands for L0.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lpslim.sparsity.penalties import Penalty


def soft_threshold(x: Tensor, threshold: Tensor) -> Tensor:
    """Return argmin_z threshold * |z| + (z - x)^2 / 2, entry by entry; threshold in [0, inf], like x."""
    return x - x.clamp(-threshold, threshold)


@dataclass(frozen=True)
class Lp:
    """The penalty sum |z|^(1/p), linearised at the last z, its weights capped at M (synaptic inhibition).

    Linearised, it is reweighted L1 (Candes et al. 2008, doi:10.1007/s00041-008-9045-x).

    Without a cap, ``M=None``, the weight of a zero is infinite, and a zero never comes back.
    """

    p: float
    M: float | None = 1.0

    @property
    def q(self) -> float:
        """The exponent 1/p."""
        return 1.0 / self.p

    @property
    def knee(self) -> float:
        """The |z| below which the cap binds: q * knee^(q-1) = M."""
        if self.M is None or (self.p == 1 and self.M >= 1):
            return 0.0
        return math.inf if self.p == 1 else float((self.q / self.M) ** (1 / (1 - self.q)))

    def weight(self, z: Tensor) -> Tensor:
        """Return w = min(q * |z|^(q-1), M), the slope of the penalty at z; same shape as z."""
        w = z.abs().pow_(self.q - 1).mul_(self.q)
        return w if self.M is None else w.clamp_(max=self.M)

    def proximal(self, x: list[Tensor], z: list[Tensor], strength: float) -> Iterator[Tensor]:
        """Yield soft(x, strength * w(z)): the Z-step, exact for the linearised penalty."""
        for new, last in zip(x, z, strict=True):
            yield soft_threshold(new, self.weight(last).mul_(strength))

    def capped(self, z: Tensor) -> Tensor:
        """Return the number of entries below the knee (0-d)."""
        return (z.abs() < self.knee).sum()

    def __str__(self) -> str:
        if self.p == 1 and not self.knee:  # the slope is 1: a cap above it limits nothing
            return "L1"
        return f"Lp p={self.p:g}, " + ("no cap" if self.M is None else f"M={self.M:g}")


@dataclass(frozen=True)
class L0:
    """The constraint that a fraction ``sparsity`` of all entries together is zero: keep the largest."""

    sparsity: float

    def proximal(self, x: list[Tensor], z: list[Tensor], strength: float) -> Iterator[Tensor]:
        """Yield the projection: the largest |x| stay as they are, the others become zero."""
        sizes = torch.cat([part.abs().flatten() for part in x])
        dropped = int(self.sparsity * len(sizes) + 1e-9)  # 0.29 * 100 is 29, not 28.999999999999996
        stays = torch.zeros_like(sizes, dtype=torch.bool)
        stays[sizes.topk(len(sizes) - dropped).indices] = True  # the exact number, also among equals
        for part, mask in zip(x, torch.split(stays, [part.numel() for part in x]), strict=True):
            yield torch.where(mask.view_as(part), part, 0.0)

    def capped(self, z: Tensor) -> Tensor:
        """Return zero (0-d): there are no weights to cap."""
        return z.new_zeros((), dtype=torch.long)

    def __str__(self) -> str:
        return "L0"


def build(p: float, M: float | None, ratio: float) -> Penalty:
    """Return the penalty for the knobs: ``L0(ratio)`` for p = 0, else ``Lp(p, M)``."""
    return L0(ratio) if p == 0 else Lp(p, M)
