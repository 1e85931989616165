"""Any classifier of torchvision that can be traced: its prunable layers are found, not listed."""

from __future__ import annotations

import torch
import torchvision
from torch import nn

from lpslim.base.errors import UserError
from lpslim.pruning.graph import discover
from lpslim.pruning.units import Prunable

FROM_TORCHVISION = True  # which also has weights for them
AUXILIARY = ("googlenet", "inception_v3")  # their second outputs are no logits of the same shape
NAMES = tuple(
    name for name in torchvision.models.list_models(module=torchvision.models) if name not in AUXILIARY
)
EXAMPLE = (1, 3, 224, 224)  # which layers belong together does not depend on it


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
    """The layers whose channels are neither added to nor concatenated with others."""
    return [Prunable(each.layer) for each in discover(model, torch.zeros(EXAMPLE))]
