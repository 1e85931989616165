"""The Z- and U-step of a linearised penalty in one pass over the memory: blocks that stay in a CPU's cache.

Z and V come out as the operations on whole tensors in :mod:`lpslim.admm` leave them, to the last bit; those
go through the memory some twenty times. The penalty's weight is M for every |z| below the knee, which is
most of them: the root is drawn for the others alone, a row of entries at a time.

With several threads torch's own ``pow`` rounds a few entries otherwise, beside the borders between threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lpslim.penalties import Linearised

PER_THREAD = 2**16  # entries of a block: about what a core's cache holds; fewer, and the calls cost more
ROW = 512  # entries that share a look at the knee; a multiple of what any processor takes at once
Triple = tuple[Tensor, Tensor, Tensor]


@dataclass
class Sums:
    """What is added up on the way: squares of W - Z and of Z_new - Z_old, zeros of Z, capped entries."""

    primal: float = 0.0
    dual: float = 0.0
    zeros: int = 0
    capped: int = 0


def views(weights: Sequence[Tensor], Z: Sequence[Tensor], V: Sequence[Tensor]) -> list[Triple] | None:
    """Return (w, z, v) of each tensor as it lies in memory, (n,) each.

    None if this is not for them: not on a CPU, neither float32 nor float64, or not laid out alike.
    """
    found = []
    for triple in zip(weights, Z, V, strict=True):
        w = triple[0]
        order = sorted(range(w.ndim), key=w.stride, reverse=True)
        permuted = [t.detach().permute(order) for t in triple]
        dense = all(t.is_contiguous() for t in permuted)
        if w.device.type != "cpu" or w.dtype not in (torch.float32, torch.float64) or not dense:
            return None
        found.append((permuted[0].view(-1), permuted[1].view(-1), permuted[2].view(-1)))
    return found


class _Soft:
    """The Z-step of entries of one dtype; strength = lamb / rho."""

    def __init__(self, penalty: Linearised, strength: float, dtype: torch.dtype) -> None:
        self.penalty, self.strength = penalty, strength
        self.below = penalty.flat_below(torch.finfo(dtype).eps)
        self.level = self._limit(torch.zeros(1, dtype=dtype)).item()

    def _limit(self, z: Tensor) -> Tensor:
        return self.penalty.weight(z).mul_(self.strength)

    def clamp(self, y: Tensor, z: Tensor, out: Tensor) -> int:
        """Write ``y``, limited to +-strength * w(z), to ``out``; return the number of capped entries."""
        row = ROW if len(z) % ROW == 0 else len(z)
        sizes = torch.abs(z, out=out).view(-1, row)
        steep = (~(sizes.amax(dim=1) < self.below)).nonzero().flatten()  # NaN is not below
        if not len(steep):
            torch.clamp(y, -self.level, self.level, out=out)
            return self._flat(len(z))
        chosen = sizes[steep]
        limit = self._limit(chosen)
        torch.clamp(y, -self.level, self.level, out=out)
        out.view(-1, row)[steep] = y.view(-1, row)[steep].clamp(-limit, limit)
        return self._flat(len(z) - limit.numel()) + int(self.penalty.capped(chosen))

    def _flat(self, entries: int) -> int:
        """Return how many are capped of entries whose weight is that of zero: all or none."""
        return entries if self.penalty.knee >= self.below else 0


@torch.no_grad()
def update(triples: Sequence[Triple], penalty: Linearised, strength: float) -> Sums:
    """Do the Z-step and the U-step in place on what ``views`` found; strength = lamb / rho."""
    most = PER_THREAD * torch.get_num_threads()
    sums = Sums()
    for w, z, v in triples:
        soft, size = _Soft(penalty, strength, w.dtype), min(most, len(w))
        buffers = torch.empty_like(w[:size]), torch.empty(size, dtype=torch.float64)
        for block in zip(*(torch.split(each, most) for each in (w, z, v)), strict=True):
            new, wide = (each[: len(block[0])] for each in buffers)
            _step(block, soft, sums, new, wide)
    return sums


def _step(block: Triple, soft: _Soft, sums: Sums, new: Tensor, wide: Tensor) -> None:
    w, z, v = block
    y = torch.sub(v, z, out=v).sub_(w)  # -x, so that V = 2 Z - x is one operation
    sums.capped += soft.clamp(y, z, out=new)
    new.sub_(y)  # soft(x) = x - clamp(x)
    sums.primal += _squares(w, new, wide)
    sums.dual += _squares(new, z, wide)
    z.copy_(new)
    y.add_(new, alpha=2)
    sums.zeros += len(w) - int(new.ne_(0).sum())  # in place it writes floats, which are summed fast


def _squares(a: Tensor, b: Tensor, wide: Tensor) -> float:
    torch.sub(a, b, out=wide)  # rounded as a and b are, then widened
    return torch.dot(wide, wide).item()
