"""L1 penalty on batch-norm scales: network slimming (Liu et al. 2017, arXiv:1708.06519)."""

from dataclasses import dataclass

import torch
from torch import nn

from lpslim.base.errors import UserError
from lpslim.pruning.units import BATCH_NORMS
from lpslim.training.callbacks import Regularizer


@dataclass(eq=False)
class BNL1(Regularizer):
    """Adds the sub-gradient ``lamb * sign(gamma)`` to the scales of every batch-norm, as the authors do."""

    model: nn.Module
    lamb: float

    def __post_init__(self) -> None:
        norms = (module for module in self.model.modules() if isinstance(module, BATCH_NORMS))
        self.scales = [norm.weight for norm in norms if norm.affine]
        if not self.scales:
            raise UserError("regularizer.name=bn_l1: the network has no batch-norm with a scale")

    @torch.no_grad()
    def after_backward(self) -> None:
        """Add the sub-gradient; a scale of exactly zero gets none."""
        for scale in self.scales:
            assert scale.grad is not None
            scale.grad.add_(scale.sign(), alpha=self.lamb)


build = BNL1
