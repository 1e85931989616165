"""The L1 penalty on batch-norm scales of network slimming (Liu et al. 2017, arXiv:1708.06519)."""

from __future__ import annotations

import torch
from torch import nn

from lpslim.training.runtime import Hooks


def scales(model: nn.Module) -> list[nn.Parameter]:
    """Return the scales of every batch-norm that has one."""
    norms = (module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    return [norm.weight for norm in norms if norm.affine]


class ScaleSparsifier(Hooks):
    """Adds the sub-gradient ``lamb * sign(gamma)`` to the scales of every batch-norm.

    The scales of the inner and of the residual stream's batch-norms alike, as in the authors' code.
    """

    def __init__(self, model: nn.Module, *, lamb: float) -> None:
        self.scales = scales(model)
        self.lamb = lamb

    @torch.no_grad()
    def after_backward(self) -> None:
        """Add the penalty's sub-gradient; a scale of exactly zero gets none."""
        for scale in self.scales:
            assert scale.grad is not None
            scale.grad.add_(scale.sign(), alpha=self.lamb)
