"""Classifiers of torchvision, such as the ResNets for ImageNet (He et al. 2016, doi:10.1109/CVPR.2016.90)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from lpslim.base.errors import UserError
from lpslim.models.family import Family
from lpslim.pruning.units import Prunable

AUXILIARY = ("googlenet", "inception_v3")  # their second outputs are no logits of the same shape
SENSITIVE = ("layer1.0", "layer2.0", "layer3.0", "layer4.0", "layer4.1")


class TorchvisionFamily(Family):
    """Networks for images of three channels; torchvision also has pretrained weights of them."""

    names = tuple(
        name for name in torchvision.models.list_models(module=torchvision.models) if name not in AUXILIARY
    )

    def build(self, name: str, *, num_classes: int, in_channels: int = 3) -> nn.Module:
        """Build torchvision's network with random weights.

        Raises:
            UserError: the images do not have three channels.
        """
        if in_channels != 3:
            raise UserError(f"model.name={name}: takes images of 3 channels, not {in_channels}")
        model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
        return model

    def prunable(self, model: nn.Module) -> list[Prunable]:
        """Return the inner convolutions of a ResNet's blocks; of any other network what tracing finds.

        The residual stream keeps its width. Bottlenecks: conv1 and conv2, except in the last block of
        layer4; the first block of each stage, and the second of layer4, are sensitive (as in the
        released code).
        """
        grouped = any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in model.modules())
        if not isinstance(model, ResNet) or grouped:  # ResNeXt: conv1 and conv2 share their channels
            return super().prunable(model)
        blocks = [
            (name, module)
            for name, module in model.named_modules()
            if isinstance(module, BasicBlock | Bottleneck)
        ]
        layers = []
        for name, block in blocks:
            if isinstance(block, BasicBlock):
                layers.append(Prunable(f"{name}.conv1"))
            elif name != blocks[-1][0]:
                sensitive = name in SENSITIVE
                layers += [Prunable(f"{name}.{conv}", sensitive) for conv in ("conv1", "conv2")]
        return layers

    def published(self, name: str) -> Mapping[str, Any]:
        """Return torchvision's weights of a network by name, such as ``IMAGENET1K_V2`` or ``DEFAULT``."""
        return torchvision.models.get_model_weights(name).__members__


family = TorchvisionFamily()
