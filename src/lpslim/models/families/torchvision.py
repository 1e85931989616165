"""ResNet-18/34/50/101 for ImageNet (He et al. 2016, doi:10.1109/CVPR.2016.90), from torchvision."""

from __future__ import annotations

import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from lpslim.base.errors import UserError
from lpslim.pruning.units import Prunable

NAMES = ("resnet18", "resnet34", "resnet50", "resnet101")
FROM_TORCHVISION = True  # which also has weights for them
SENSITIVE = ("layer1.0", "layer2.0", "layer3.0", "layer4.0", "layer4.1")


def build(name: str, *, num_classes: int, in_channels: int = 3) -> nn.Module:
    """Build torchvision's network with random weights.

    Raises:
        UserError: the images do not have three channels.
    """
    if in_channels != 3:
        raise UserError(f"model.name={name}: takes images of 3 channels, not {in_channels}")
    model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    return model


def prunable(model: nn.Module) -> list[Prunable]:
    """The inner convolutions of each block; the residual stream keeps its width.

    Bottlenecks: conv1 and conv2, except in the last block of layer4; the first block of each
    stage, and the second of layer4, are sensitive (as in the released code).
    """
    blocks = [(name, m) for name, m in model.named_modules() if isinstance(m, BasicBlock | Bottleneck)]
    found = []
    for name, block in blocks:
        if isinstance(block, BasicBlock):
            found.append(Prunable(f"{name}.conv1"))
        elif name != blocks[-1][0]:
            sensitive = name in SENSITIVE
            found += [Prunable(f"{name}.{conv}", sensitive) for conv in ("conv1", "conv2")]
    return found
