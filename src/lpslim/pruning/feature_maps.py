"""Means over the feature maps of layers while a network runs."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lpslim.base.errors import UserError
from lpslim.base.modules import eval_mode, weight_of
from lpslim.pruning.units import Units, norm_name


def check(model: nn.Module, units: Sequence[Units]) -> None:
    """Refuse layers that are no convolutions, and so make no feature maps (UserError)."""
    for unit in units:
        if weight_of(model, unit.layer).ndim != 4:
            raise UserError(f"layer {unit.layer!r}: makes no feature maps, which this criterion looks at")


@torch.no_grad()
def mean_over_images(
    model: nn.Module, units: Sequence[Units], batches: Iterable[tuple[Tensor, Tensor]],
    measure: Callable[[Tensor], Tensor],
) -> list[Tensor]:  # fmt: skip
    """Return the mean over all images of a measure of each channel's map, float64 (channels,) for each layer.

    A layer's maps are its output after the batch-norm that follows it (if one does) and a ReLU, whatever
    activation the network itself has. batches: images (B, C, H, W) with labels, which are not used; UserError
    if there are none. measure: maps (B, c, H, W) -> (B, c).
    """
    sources = [norm_name(model, unit) or unit.layer for unit in units]
    totals = {source: torch.zeros((), dtype=torch.float64) for source in sources}
    images = 0

    def record(source: str, _: nn.Module, __: Any, maps: Tensor) -> None:
        totals[source] = totals[source] + measure(F.relu(maps)).double().sum(dim=0).cpu()

    with eval_mode(model), ExitStack() as hooks:
        for source in sources:
            layer = model.get_submodule(source)
            hooks.enter_context(layer.register_forward_hook(partial(record, source)))
        for inputs, _ in batches:
            model(inputs)
            images += len(inputs)
    if not images:
        raise UserError("batches: this criterion looks at feature maps and needs images, got none")
    return [totals[source] / images for source in sources]
