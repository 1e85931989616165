"""CIFAR-style residual networks (He et al. 2016, sec. 4.2, doi:10.1109/CVPR.2016.90).

Depth 6n + 2, three stages of n blocks with 16, 32 and 64 channels. The shortcut between stages has no
parameters ("option A": every second pixel, zero-padded channels). Names are those of public checkpoints.
"""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from lpslim.models.family import PUBLIC, Family
from lpslim.models.weights import IMAGENET, Published
from lpslim.pruning.units import Prunable

# of CIFAR-10, trained on all 50,000 images under ImageNet's normalisation
SOURCE = "https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models"
HASHES = {20: "12fca82f", 32: "d509ac18", 44: "014dd654", 56: "4bfd9763", 110: "1d1ed7c2"}
FILES = {f"resnet{depth}": f"resnet{depth}-{sha}.th" for depth, sha in HASHES.items()}


class Block(nn.Module):
    """Two 3x3 convolutions with batch-norm, added to an option-A shortcut."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.stride, self.padding = stride, channels_out - channels_in

    def forward(self, x: Tensor) -> Tensor:
        """Return maps (batch, channels_out, height / stride, width / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.padding:
            before = self.padding // 2
            channels = (0, 0, 0, 0, before, self.padding - before)
            x = F.pad(x[:, :, :: self.stride, :: self.stride], channels)
        return F.relu(out + x)


class ResNetCifar(nn.Module):
    """Maps images (batch, in_channels, height, width) to logits (batch, num_classes)."""

    def __init__(self, depth: int, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.linear(out.mean(dim=(2, 3)))


def _stage(channels_in: int, channels_out: int, blocks: int, stride: int) -> nn.Sequential:
    first = Block(channels_in, channels_out, stride)
    return nn.Sequential(first, *(Block(channels_out, channels_out, 1) for _ in range(blocks - 1)))


class ResNetCifarFamily(Family):
    """``resnet20`` to ``resnet110``; the first convolution of every block is prunable."""

    names = tuple(FILES)
    aliases = (("fc.", "linear."),)

    def build(self, name: str, *, num_classes: int, in_channels: int = 3) -> ResNetCifar:
        """Return a network with random weights (He initialisation)."""
        return ResNetCifar(int(name.removeprefix("resnet")), num_classes, in_channels)

    def prunable(self, model: nn.Module) -> list[Prunable]:
        """Return the first convolution of every block: residual streams keep their width."""
        return [Prunable(f"{name}.conv1") for name, part in model.named_modules() if isinstance(part, Block)]

    def published(self, name: str) -> Mapping[str, Published]:
        """Return the public weights of a network for CIFAR-10."""
        return {PUBLIC: Published(FILES[name], f"{SOURCE}/{FILES[name]}", *IMAGENET)} if name in FILES else {}


family = ResNetCifarFamily()
