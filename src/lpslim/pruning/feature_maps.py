"""Feature maps of the prunable layers, measured batch by batch while the network runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lpslim.base.errors import UserError
from lpslim.base.modules import evaluating
from lpslim.pruning.units import Units, norm_of, weight_of

Measure = Callable[[Tensor], Tensor]


def check(model: nn.Module, units: Sequence[Units]) -> None:
    """Refuse units that make no feature maps.

    Raises:
        UserError: a layer is no convolution.
    """
    for each in units:
        if weight_of(model, each.layer).ndim != 4:
            raise UserError(f"layer {each.layer!r}: makes no feature maps, which this criterion looks at")


@torch.no_grad()
def mean_over_images(
    model: nn.Module, units: Sequence[Units], batches: Iterable[Tensor], measure: Measure
) -> list[Tensor]:
    """Return the mean over all images of what ``measure`` makes of each channel's map.

    ``measure``: maps (B, c, H, W) -> (B, c). A layer's maps are its output after the batch-norm that
    follows it (if one does) and a ReLU, whatever activation the network itself has. They are
    measured as they come, so that none is kept. ``batches`` yields images (B, C, H, W) on the
    model's device; the network runs in evaluation mode and is left in the modes it was in.

    Returns float64 (channels,) for each layer.

    Raises:
        UserError: there are no images, or a layer's output is no feature map.
    """
    totals = [torch.zeros(len(weight_of(model, each.layer)), dtype=torch.float64) for each in units]

    def hook(total: Tensor, layer: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def add(_: nn.Module, __: tuple[Tensor, ...], out: Tensor) -> None:
            if out.ndim != 4:
                raise UserError(f"layer {layer!r}: its output {tuple(out.shape)} is no feature map")
            total.add_(measure(F.relu(out)).double().sum(dim=0).cpu())

        return add

    handles = [
        _source(model, each).register_forward_hook(hook(total, each.layer))
        for each, total in zip(units, totals, strict=True)
    ]
    images = 0
    try:
        with evaluating(model):
            for batch in batches:
                model(batch)
                images += len(batch)
    finally:
        for handle in handles:
            handle.remove()
    if not images:
        raise UserError("batches: this criterion looks at feature maps and needs images, got none")
    return [total / images for total in totals]


def _source(model: nn.Module, each: Units) -> nn.Module:
    if any(isinstance(model.get_submodule(name), nn.BatchNorm2d) for name in each.producers):
        return norm_of(model, each)
    return model.get_submodule(each.layer)
