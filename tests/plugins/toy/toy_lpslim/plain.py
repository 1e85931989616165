"""Network family: a few convolutions without batch-norm; its prunable layers are found by tracing."""

from torch import nn

from lpslim.models.family import Family


class Plain(Family):
    names = ("plain2", "plain3")

    def build(self, name, *, num_classes, in_channels):
        layers = []
        for _ in range(int(name[-1])):
            layers += [nn.Conv2d(in_channels, 8, 3, padding=1), nn.ReLU()]
            in_channels = 8
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))


family = Plain()
