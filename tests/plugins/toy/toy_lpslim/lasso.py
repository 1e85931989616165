"""Regulariser that is no ADMM: group lasso over the filters of convolutions."""

import torch
from torch import nn

from lpslim.training.callbacks import Regularizer


class GroupLasso(Regularizer):
    def __init__(self, model, strength):
        super().__init__()
        self.convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
        self.strength = strength

    @torch.no_grad()
    def after_backward(self):
        for convolution in self.convolutions:
            norms = convolution.weight.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)
            convolution.weight.grad.add_(convolution.weight / norms, alpha=self.strength)


def build(model, strength):
    return GroupLasso(model, strength)
