"""Scaled-dual ADMM on a list of weight tensors, with the penalty on the copy Z.

    min_W  L(W) + lamb * penalty(Z)   s.t.   W = Z

Only Z and V = Z - U are kept, two copies of the weights: the gradient needs V alone, and U = Z - V.

Scaled form and residuals: Boyd et al. 2011, sections 3.1.1 and 3.3 (doi:10.1561/2200000016); the splitting
and its penalty: Ji et al. 2025 (doi:10.1016/j.patcog.2025.111711).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lpslim.sparsity.penalties import Penalty

FORMS = ("squared", "norm")


@dataclass(frozen=True)
class Residuals:
    """Residuals of one outer iteration: one point of the convergence figure."""

    primal: float  # ||W - Z||
    dual: float  # rho * ||Z_new - Z_old||
    sparsity: float  # share of zeros in Z
    capped: float  # share of entries whose weight was limited by the cap M in this Z-step


class ADMM:
    """State Z and V of the ADMM, with the two steps that the optimiser does not do.

    Args:
        weights: parameters to regularise, of any shapes; they are read, and their ``.grad`` is added to.
        penalty, lamb, rho: penalty on Z, its weight, and the weight of the augmented Lagrangian.
        form: ``squared`` (the augmented Lagrangian) or ``norm`` (the released code).

    Raises:
        ValueError: no weights, an unknown form, or lamb or rho not positive.
    """

    def __init__(
        self, weights: Sequence[Tensor], penalty: Penalty, *, lamb: float, rho: float, form: str = "squared"
    ) -> None:
        if not weights:
            raise ValueError("weights: the list is empty")
        if not (lamb > 0 and rho > 0):  # NaN is refused too
            raise ValueError(f"lamb={lamb}, rho={rho}: both must be positive")
        if form not in FORMS:
            raise ValueError(f"form={form!r}: must be one of {', '.join(FORMS)}")
        self.weights, self.penalty, self.lamb, self.rho, self.form = list(weights), penalty, lamb, rho, form
        self.Z = [w.detach().clone() for w in self.weights]
        self.V = [w.detach().clone() for w in self.weights]  # U starts at zero

    @property
    def U(self) -> list[Tensor]:
        """The scaled dual variable, Z - V."""
        return [z - v for z, v in zip(self.Z, self.V, strict=True)]

    @torch.no_grad()
    def add_gradient(self) -> None:
        """Add the gradient of the augmented Lagrangian to ``.grad``: part of the W-step, after backward.

        ``squared``: rho * (W - V), of rho/2 * ||W - Z + U||^2. ``norm``: of rho/2 * ||W - Z + U||, tensor by
        tensor; its length is rho/2 however far W is from V, and is taken as zero at W = V.
        """
        gradients = [w.grad for w in self.weights if w.grad is not None]
        if len(gradients) < len(self.weights):
            raise ValueError("weights: some have no gradient: call add_gradient after backward")
        for gradient, w, v in zip(gradients, self.weights, self.V, strict=True):
            if self.form == "squared":
                gradient.add_(w, alpha=self.rho).add_(v, alpha=-self.rho)
                continue
            length = (gap := w - v).norm()
            gradient.add_(torch.where(length > 0, gap * (0.5 * self.rho / length), 0.0))

    @torch.no_grad()
    def update(self) -> Residuals:
        """Do the Z-step and the U-step in place: x = W + U; Z = proximal(x); U = x - Z, so V = 2 Z - x."""
        for w, z, v in zip(self.weights, self.Z, self.V, strict=True):
            v.neg_().add_(z).add_(w)  # V now holds x
        updated = self.penalty.proximal(self.V, self.Z, self.lamb / self.rho)
        sums = torch.zeros(4, dtype=torch.float64, device=self.weights[0].device)
        for w, z, v, new in zip(self.weights, self.Z, self.V, updated, strict=True):
            primal, dual = ((gap.double() ** 2).sum() for gap in (w - new, new - z))
            sums += torch.stack([primal, dual, (new == 0).sum(), self.penalty.capped(z)])
            z.copy_(new)
            v.neg_().add_(new, alpha=2)
        a, b, zeros, capped = sums.tolist()
        size = sum(w.numel() for w in self.weights)
        return Residuals(math.sqrt(a), self.rho * math.sqrt(b), zeros / size, capped / size)

    def state_dict(self) -> dict[str, Tensor]:
        """Return Z and V as one flat dictionary; the tensors are not copied."""
        return {f"{name}.{i}": t for name, part in (("Z", self.Z), ("V", self.V)) for i, t in enumerate(part)}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copy Z and V from ``state``; ValueError if names or shapes are not those of these weights."""
        own = self.state_dict()
        if {name: t.shape for name, t in own.items()} != {name: t.shape for name, t in state.items()}:
            raise ValueError("ADMM state does not fit these weights: other names or shapes")
        for name, tensor in own.items():
            tensor.copy_(state[name])
