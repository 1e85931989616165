"""The |z|^q family of the paper, q = 1/p: Lp (p > 1), L1 (p = 1) and L0 (p = 0).

Ji et al., Pattern Recognition 2025, article 111711. The knob ``p`` is the
denominator: p = 5 means |z|^(1/5).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lpslim.sparsity.penalties import Penalty

SAFETY = 256  # times a float's rounding error: far more than a root and two products make


def soft_threshold(x: Tensor, threshold: Tensor) -> Tensor:
    """Return argmin_z threshold * |z| + (z - x)^2 / 2, entry by entry; same shape as x.

    threshold: like x, not negative; infinity gives zero.
    """
    return x - x.clamp(-threshold, threshold)


@dataclass(frozen=True)
class Lp:
    """The penalty sum |z|^(1/p), linearised at the last z, its weights capped at M.

    ``M`` is the synaptic inhibition; ``None`` switches it off: then the weight of a zero is
    infinite, and a zero never comes back.
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
        if self.M is None:
            return 0.0
        if self.p == 1:
            return float("inf") if self.M < 1 else 0.0
        return float((self.q / self.M) ** (1 / (1 - self.q)))

    def weight(self, z: Tensor) -> Tensor:
        """Return w = min(q * |z|^(q-1), M), the slope of the penalty at z; same shape as z."""
        w = z.abs().pow_(self.q - 1).mul_(self.q)
        return w if self.M is None else w.clamp_(max=self.M)

    def flat_below(self, eps: float) -> float:
        """Return a size below which every |z| has the weight of zero, to the bit: a little under the knee.

        eps: of the floats that z is in. A root drawn just below the knee may be rounded to less than M.
        """
        if self.p == 1:
            return float("inf")
        margin = SAFETY * eps / (1 - self.q) if self.p > 1 else 1.0
        return self.knee * max(0.0, 1 - margin)

    def proximal(self, x: list[Tensor], z: list[Tensor], strength: float) -> Iterator[Tensor]:
        """Yield soft(x, strength * w(z)): the Z-step, exact for the linearised penalty."""
        for each, last in zip(x, z, strict=True):
            yield soft_threshold(each, self.weight(last).mul_(strength))

    def capped(self, z: Tensor) -> Tensor:
        """Return the number of entries below the knee (0-d)."""
        return (z.abs() < self.knee).sum()

    def value(self, z: Tensor) -> Tensor:
        """Return the penalty whose slope ``weight`` is: M * |z| up to the knee, then |z|^q + const.

        Without a cap, sum |z|^q. Returns a 0-d tensor.
        """
        size, knee = z.abs(), self.knee
        if self.M is None or knee == 0:
            return size.pow(self.q).sum()
        beyond = size.pow(self.q) - knee**self.q + self.M * knee
        return torch.where(size <= knee, self.M * size, beyond).sum()


@dataclass(frozen=True)
class L0:
    """The constraint that a fraction ``sparsity`` of all entries (rounded down to entries) is zero.

    The released code's stand-in for L0: keep the largest, over all tensors together.
    """

    sparsity: float

    def proximal(self, x: list[Tensor], z: list[Tensor], strength: float) -> Iterator[Tensor]:
        """Yield the projection: the largest |x| stay as they are, the others become zero."""
        sizes = torch.cat([each.abs().flatten() for each in x])
        dropped = int(self.sparsity * len(sizes) + 1e-9)  # 0.29 * 100 is 29, not 28.999999999999996
        stays = torch.zeros_like(sizes, dtype=torch.bool)
        stays[sizes.topk(len(sizes) - dropped).indices] = True  # as many as asked for, also among equals
        for each, mask in zip(x, torch.split(stays, [each.numel() for each in x]), strict=True):
            yield torch.where(mask.view_as(each), each, 0.0)

    def capped(self, z: Tensor) -> Tensor:
        """Return zero (0-d): there are no weights to cap."""
        return z.new_zeros((), dtype=torch.long)


def build(p: float, M: float | None, ratio: float) -> Penalty:
    """Return the penalty for the knobs: ``L0(ratio)`` for p = 0, else ``Lp(p, M)``."""
    return L0(ratio) if p == 0 else Lp(p, M)
