"""Scaled-dual ADMM on a list of weight tensors: W = Z, with the penalty on Z.

    min_W L(W) + lamb * penalty(Z)   s.t.   W = Z

Of the three blocks W, Z and U only Z and V = Z - U are kept: the gradient of the W-step needs
V alone, and U = Z - V. So the method costs two copies of the regularised weights, and one
fused pass over them after each backward.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lpslim import blocks
from lpslim.sparsity.penalties import Linearised, Penalty


@dataclass(frozen=True)
class Residuals:
    """What one outer iteration left: the points of the convergence figure.

    primal: ||W - Z||. dual: rho * ||Z_new - Z_old||. sparsity: share of zeros in Z.
    capped: share of entries whose weight the cap M limited in this Z-step.
    """

    primal: float
    dual: float
    sparsity: float
    capped: float


def _gradients(weights: Sequence[Tensor]) -> list[Tensor]:
    missing = [i for i, w in enumerate(weights) if w.grad is None]
    if missing:
        raise ValueError(f"weights {missing} have no gradient: call after backward")
    return [w.grad for w in weights if w.grad is not None]


@torch.no_grad()
def add_squared_gradient(weights: Sequence[Tensor], V: Sequence[Tensor], rho: float) -> None:
    """Add the gradient rho * (W - V) of rho/2 * ||W - Z + U||^2 to the weights' gradients."""
    gradients = _gradients(weights)
    torch._foreach_add_(gradients, list(weights), alpha=rho)
    torch._foreach_add_(gradients, list(V), alpha=-rho)


@torch.no_grad()
def add_norm_gradient(weights: Sequence[Tensor], V: Sequence[Tensor], rho: float) -> None:
    """Add the gradient of the released code's rho/2 * ||W - Z + U||, not squared, per tensor.

    It has length rho/2 however far W is from V, and is taken as zero at W = V.
    """
    for gradient, w, v in zip(_gradients(weights), weights, V, strict=True):
        gap = w - v
        length = gap.norm()
        gradient.add_(torch.where(length > 0, gap * (0.5 * rho / length), 0.0))


FORMS: dict[str, Callable[[Sequence[Tensor], Sequence[Tensor], float], None]] = {
    "squared": add_squared_gradient,
    "norm": add_norm_gradient,
}


class ADMM:
    """The state Z, V and the two steps that the optimiser does not do.

    Args:
        weights: parameters to regularise, of any shapes; they are read, and their
            ``.grad`` is added to, in place.
        penalty: see :class:`lpslim.sparsity.penalties.Penalty`.
        lamb, rho: weight of the penalty and of the augmented Lagrangian, both positive.
        form: ``squared`` (the augmented Lagrangian) or ``norm`` (the released code).

    Raises:
        ValueError: no weights, an unknown form, or lamb or rho not positive.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        penalty: Penalty,
        *,
        lamb: float,
        rho: float,
        form: str = "squared",
    ) -> None:
        if not weights:
            raise ValueError("weights: the list is empty")
        if not (lamb > 0 and rho > 0):  # NaN is refused too
            raise ValueError(f"lamb={lamb}, rho={rho}: both must be positive")
        if form not in FORMS:
            raise ValueError(f"form={form!r}: must be one of {', '.join(FORMS)}")
        self.weights = list(weights)
        self.penalty, self.lamb, self.rho = penalty, lamb, rho
        self._add = FORMS[form]
        self.Z = [w.detach().clone() for w in self.weights]
        self.V = [w.detach().clone() for w in self.weights]  # U starts at zero

    @property
    def U(self) -> list[Tensor]:
        """The scaled dual variable, Z - V."""
        return [z - v for z, v in zip(self.Z, self.V, strict=True)]

    def add_gradient(self) -> None:
        """Add the penalty's gradient to ``.grad``: part of the W-step, after backward."""
        self._add(self.weights, self.V, self.rho)

    @torch.no_grad()
    def update(self) -> Residuals:
        """Do the Z-step and the U-step, in place, and return the residuals.

        x = W + U;  Z = proximal(x);  U = x - Z, that is V = 2 Z - x.
        """
        size = sum(w.numel() for w in self.weights)
        views = blocks.views(self.weights, self.Z, self.V)
        if views and isinstance(self.penalty, Linearised):
            sums = blocks.update(views, self.penalty, self.lamb / self.rho)
        else:
            sums = self._update_whole()
        return Residuals(
            primal=math.sqrt(sums.primal),
            dual=self.rho * math.sqrt(sums.dual),
            sparsity=sums.zeros / size,
            capped=sums.capped / size,
        )

    def _update_whole(self) -> blocks.Sums:
        """Do it tensor by tensor: on an accelerator, and for penalties that look at all entries together."""
        device = self.weights[0].device
        primal, dual = (torch.zeros((), dtype=torch.float64, device=device) for _ in range(2))
        zeros, capped = (torch.zeros((), dtype=torch.long, device=device) for _ in range(2))
        for w, z, v in zip(self.weights, self.Z, self.V, strict=True):
            v.neg_().add_(z).add_(w)  # now x = W + U
            capped += self.penalty.capped(z)
        updated = self.penalty.proximal(self.V, self.Z, self.lamb / self.rho)
        for w, z, v, new in zip(self.weights, self.Z, self.V, updated, strict=True):
            primal += (w - new).double().square_().sum()
            dual += (new - z).double().square_().sum()
            zeros += (new == 0).sum()
            z.copy_(new)
            v.neg_().add_(new, alpha=2)
        return blocks.Sums(primal.item(), dual.item(), int(zeros), int(capped))

    def state_dict(self) -> dict[str, Tensor]:
        """Return Z and V as one flat dictionary; the tensors are not copied."""
        parts = {"Z": self.Z, "V": self.V}
        return {f"{name}.{i}": t for name, part in parts.items() for i, t in enumerate(part)}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copy Z and V from ``state``.

        Raises:
            ValueError: the names or shapes are not those of these weights.
        """
        own = self.state_dict()
        shapes = {name: t.shape for name, t in own.items()}
        if shapes != {name: t.shape for name, t in state.items()}:
            raise ValueError("ADMM state does not fit these weights: other names or shapes")
        for name, tensor in own.items():
            tensor.copy_(state[name])
