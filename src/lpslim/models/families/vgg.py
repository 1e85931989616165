"""VGG for small images, with batch-norm and a linear layer (Simonyan and Zisserman 2015, arXiv:1409.1556)."""

from torch import Tensor, nn

from lpslim.models.family import Family
from lpslim.pruning.units import Prunable

POOL = 0
WIDTHS = {
    "vgg_small": (32, 32, POOL, 64, 64, POOL, 128, 128),
    "vgg16": (64, 64, POOL, 128, 128, POOL, *(256,) * 3, POOL, *(512,) * 3, POOL, *(512,) * 3, POOL),
    "vgg19": (64, 64, POOL, 128, 128, POOL, *(256,) * 4, POOL, *(512,) * 4, POOL, *(512,) * 4, POOL),
}


class VGG(nn.Module):
    """Maps images (batch, in_channels, height, width) to logits (batch, num_classes)."""

    def __init__(self, widths: tuple[int, ...], num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in widths:
            if width == POOL:
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(in_channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            in_channels = width
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(in_channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        return self.classifier(self.pool(self.features(x)).flatten(1))


class VGGFamily(Family):
    """``vgg16``, ``vgg19`` and ``vgg_small`` (6 convolutions); every convolution is prunable."""

    names = tuple(WIDTHS)

    def build(self, name: str, *, num_classes: int, in_channels: int = 3) -> VGG:
        """Return a network with random weights (He initialisation)."""
        return VGG(WIDTHS[name], num_classes, in_channels)

    def prunable(self, model: nn.Module) -> list[Prunable]:
        """Return every convolution."""
        return [Prunable(name) for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]


family = VGGFamily()
