"""Criterion that uses labels: sum of |w dL/dw| over the weights of an output channel (arXiv:1810.02340)."""

import torch
import torch.nn.functional as F

from lpslim.base.modules import eval_mode


def score(model, units, batches=(), loss=F.cross_entropy):
    layers = dict(model.named_modules())
    weights = [layers[unit.layer].weight for unit in units]
    totals = [torch.zeros(len(weight), dtype=torch.float64) for weight in weights]
    with eval_mode(model), torch.enable_grad():
        for inputs, labels in batches:
            gradients = torch.autograd.grad(loss(model(inputs), labels), weights)
            for total, weight, gradient in zip(totals, weights, gradients, strict=True):
                total += (weight.detach() * gradient).abs().flatten(1).sum(dim=1).double().cpu()
    return totals
