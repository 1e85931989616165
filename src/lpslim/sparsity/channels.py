"""ADMM on groups of weights, such as all that produces one channel: a group of Z is zero as a whole, or not.

    min_W  L(W) + sum_u t phi(s_u(Z))   s.t.   W_u = Z_u

The groups share no entry. All is measured in scaled variables: each part of a layer (its weights, its bias,
the scale and the shift of the norm behind it) is divided by the root mean square of its own norm over the
layer's groups at the start, and by the root of the number of parts, so that the mean of s_u^2 over a layer is
one. s_u is the Euclidean norm of a group, and the pull towards V = Z - U is the same in all scaled variables:
shrinking a group as a whole is the exact proximal map of ``t w_u s_u``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

LEAST_SCALE = 0.1  # of the same module's first part: a bias of zero has no size of its own


class Slice(NamedTuple):
    """Entries of a parameter that belong to groups: those at ``channels[i]`` of ``axis`` to ``group[i]``."""

    name: str
    axis: int
    channels: Tensor
    group: Tensor


def shrinkage(size: Tensor, threshold: Tensor) -> Tensor:
    """Return the c of ``c x = argmin_z threshold * ||z|| + ||z - x||^2 / 2``, for vectors x of such sizes."""
    return torch.where(size > threshold, 1 - threshold / size, 0.0)


class GroupADMM:
    """State Z and V of the ADMM on groups of parameters, and the steps that the optimiser does not do.

    Args:
        parameters: by name; those that ``slices`` name are pulled, in place.
        slices: the groups, numbered from 0.
        layers: the layer of each group, numbered from 0 (groups,).
        weight: slope of the penalty at a size, ``phi'(s_u)``; None for no penalty: groups go or stay as they
            are (the projection).
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], slices: Sequence[Slice], layers: Tensor,
        weight: Callable[[Tensor], Tensor] | None,
    ) -> None:  # fmt: skip
        self.weights, self.weight = [parameters[part.name].detach() for part in slices], weight
        device = self.weights[0].device
        self.slices = [p._replace(channels=p.channels.to(device), group=p.group.to(device)) for p in slices]
        self.layers = layers.to(device)
        self.scales = self._scales()
        self.Z, self.V = ([w.clone() for w in self.weights] for _ in range(2))  # U starts at zero
        self.stays = torch.ones(len(layers), dtype=torch.bool, device=device)
        self.pull(0.0)

    def _squares(self, tensors: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield, part by part, the squared norm of each group's entries (groups,), float64."""
        for part, tensor in zip(self.slices, tensors, strict=True):
            rows = tensor.index_select(part.axis, part.channels).movedim(part.axis, 0)[..., None].flatten(1)
            total = torch.zeros(len(self.layers), dtype=torch.float64, device=rows.device)
            yield total.index_add_(0, part.group, rows.double().square().sum(dim=1))

    def _scales(self) -> list[Tensor]:
        """Return the scale of each part's entries, layer by layer (layers,); 1 where nothing has a size."""
        count, layers = int(self.layers.max()) + 1, self.layers
        sizes = torch.bincount(layers, minlength=count)
        means, present = [], []
        for part, squares in zip(self.slices, self._squares(self.weights), strict=True):
            total = torch.zeros(count, dtype=torch.float64, device=layers.device)
            means.append(total.index_add_(0, layers, squares).div_(sizes).sqrt_())
            present.append(torch.bincount(layers[part.group], minlength=count) > 0)
        first: dict[str, Tensor] = {}
        for i, part in enumerate(self.slices):
            own = first.setdefault(part.name.rpartition(".")[0], means[i])
            means[i] = torch.maximum(means[i], LEAST_SCALE * own)
        parts = torch.stack(present).sum(dim=0).sqrt()
        return [torch.where(mean > 0, mean * parts, 1.0) for mean in means]

    def sizes(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return s_u, the norm of each group in scaled variables (groups,), float64."""
        pairs = zip(self._squares(tensors), self.scales, strict=True)
        parts = [squares / scale[self.layers].square() for squares, scale in pairs]
        return torch.stack(parts).sum(dim=0).sqrt()

    @torch.no_grad()
    def update(self, choose: Callable[[Tensor], Tensor]) -> float:
        """Do the Z- and U-step in place: x = W + U; Z = x * max(0, 1 - t w / s(x)); U = x - Z.

        choose: from the priorities ``s_u(x) / w_u``, with the slopes w at the last Z, to the groups that stay
        (groups,), bool. Then the penalty is linearised again, at x for what stays and at zero for what goes,
        and t is the least threshold, layer by layer, that keeps at zero all that goes: a layer that loses
        nothing is not shrunk. Returns the mean of s(Z) / s(x) over the groups that stay.
        """
        for w, z, v in zip(self.weights, self.Z, self.V, strict=True):
            v.neg_().add_(z).add_(w)  # V now holds x
        size = self.sizes(self.V)
        priority = size / self.weight(self.sizes(self.Z)) if self.weight else size
        self.stays = choose(priority)
        factors = self.stays.double()
        if self.weight:
            slope = self.weight(size * self.stays)  # at zero for what goes: there the cap alone counts
            t = torch.zeros(int(self.layers.max()) + 1, dtype=torch.float64, device=size.device)
            t.scatter_reduce_(0, self.layers, torch.where(self.stays, 0.0, size / slope), "amax")
            factors *= shrinkage(size, t[self.layers] * slope)
        for part, z, v in zip(self.slices, self.Z, self.V, strict=True):
            z.copy_(v).mul_(self._spread(part, z, factors, 1.0))
            v.neg_().add_(z, alpha=2)
        return factors[self.stays].mean().item()

    def gap(self) -> float:
        """Return ``||W - Z|| / ||W||``: of the groups that go, over all groups, in scaled variables."""
        sizes = self.sizes(self.weights)
        return (sizes[~self.stays].norm() / sizes.norm()).item()

    def pull(self, share: float, held: bool = False) -> None:
        """Set the share of the gap between W and V that each step closes.

        held: the choice is final: the groups that stay are free, and those that go are drawn to zero itself.
        """
        each = torch.full_like(self.layers, share, dtype=torch.float64)
        if held:
            each[self.stays] = 0.0
            for part, v in zip(self.slices, self.V, strict=True):
                v.mul_(self._spread(part, v, self.stays.double(), 1.0))
        self.shares = [self._spread(p, w, each, 0.0) for p, w in zip(self.slices, self.weights, strict=True)]

    @torch.no_grad()
    def step(self) -> None:
        """Pull W to V, after each step of the optimiser."""
        for w, v, share in zip(self.weights, self.V, self.shares, strict=True):
            w.lerp_(v, share)

    def silence(self) -> None:
        """Set the groups that go to zero."""
        for part, w in zip(self.slices, self.weights, strict=True):
            w.mul_(self._spread(part, w, self.stays.double(), 1.0))

    @contextmanager
    def silenced(self) -> Iterator[None]:
        """Hold the groups that go at zero; afterwards every entry is what it was."""
        saved = [w.clone() for w in self.weights]
        self.silence()
        try:
            yield
        finally:
            for w, old in zip(self.weights, saved, strict=True):
                w.copy_(old)

    def _spread(self, part: Slice, like: Tensor, values: Tensor, other: float) -> Tensor:
        """Return a value per group as a factor of a parameter; ``other`` where it belongs to no group."""
        spread = like.new_full((like.shape[part.axis],), other)
        spread[part.channels] = values[part.group].to(like.dtype)
        return spread.view([-1 if axis == part.axis else 1 for axis in range(like.ndim)])

    def state_dict(self) -> dict[str, Tensor]:
        """Return Z, V, the scales and the groups that stay as one flat dictionary; nothing is copied."""
        tensors = {"Z": self.Z, "V": self.V, "scale": self.scales, "stays": [self.stays]}
        return {f"{name}.{i}": t for name, part in tensors.items() for i, t in enumerate(part)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy all from ``state``; the weight of the pull has to be set again."""
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])
