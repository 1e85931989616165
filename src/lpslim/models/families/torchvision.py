"""Classifiers of torchvision, such as the ResNets for ImageNet (He et al. 2016, doi:10.1109/CVPR.2016.90)."""

from collections.abc import Mapping

import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from lpslim.base.errors import UserError
from lpslim.models.family import PUBLIC, Family
from lpslim.models.weights import Published
from lpslim.pruning.units import Prunable

AUXILIARY = ("googlenet", "inception_v3")  # their second outputs are no logits of the same shape
SENSITIVE = ("layer1.0", "layer2.0", "layer3.0", "layer4.0", "layer4.1")


class TorchvisionFamily(Family):
    """Networks for images of three channels, which torchvision also has pretrained weights of."""

    names = tuple(sorted({*torchvision.models.list_models(torchvision.models)} - {*AUXILIARY}))

    def build(self, name: str, *, num_classes: int, in_channels: int = 3) -> nn.Module:
        """Return a network with random weights; UserError unless images have three channels."""
        if in_channels != 3:
            raise UserError(f"model.name={name}: takes images of 3 channels, not {in_channels}")
        return torchvision.models.get_model(name, weights=None, num_classes=num_classes)

    def prunable(self, model: nn.Module) -> list[Prunable]:
        """Return the inner convolutions of a ResNet's blocks; other networks' are found by tracing.

        Of bottlenecks all but the last block's, and some are sensitive, as in the released code.
        """
        blocks = [(name, m) for name, m in model.named_modules() if isinstance(m, BasicBlock | Bottleneck)]
        layers = []
        for name, block in blocks:
            if block.conv2.groups > 1:  # ResNeXt: conv1 and conv2 share their channels
                return []
            if isinstance(block, BasicBlock):
                layers.append(Prunable(f"{name}.conv1"))
            elif name != blocks[-1][0]:
                layers += [Prunable(f"{name}.{conv}", name in SENSITIVE) for conv in ("conv1", "conv2")]
        return layers

    def published(self, name: str) -> Mapping[str, Published]:
        """Return torchvision's weights by name, such as ``IMAGENET1K_V2``; public ones are IMAGENET1K_V1."""
        if name not in (self.names or ()):
            return {}
        known = {}
        for member, entry in torchvision.models.get_model_weights(name).__members__.items():
            taken = entry.transforms()
            known[member] = Published(str(entry), entry.url, tuple(taken.mean), tuple(taken.std))
        return known | ({PUBLIC: known["IMAGENET1K_V1"]} if "IMAGENET1K_V1" in known else {})


family = TorchvisionFamily()
