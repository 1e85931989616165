"""Criteria: one module each, whose ``score`` gives every output channel a number; the lowest go first.

    score(model, units, batches, loss) -> list of float64 tensors (groups * size * head_dim,), one per layer

``batches`` yields (inputs, labels) of the training set, augmented, on the model's device; ``loss`` is the
mean loss of (outputs, labels). One that cannot score every network has ``check(model, units)`` too, which
raises a UserError. Scores of different layers are put on one scale later, by ``selection.SCORE_NORMS``.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lpslim.base import registry
from lpslim.base.errors import UserError
from lpslim.base.modules import Example, call, eval_mode, weight_of
from lpslim.pruning.units import Units, norm_name, pooled

Batches = Iterable[tuple[Example, Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]


def layers(name: str, model: nn.Module, units: Sequence[Units]) -> list[Units]:
    """Return the units to score, or of coupled units the member layers that the criterion can score.

    UserError for a criterion that does not exist, or if it can score none that makes a unit.
    """
    scored, check = dict[str, Units](), getattr(registry.find("pruning.criteria", name), "check", None)
    for unit in units:
        able, problem = list[Units](), UserError("")
        for each in unit.members or [unit]:
            try:
                if check:
                    check(model, [each])
                able.append(each)
            except UserError as refused:
                problem = refused
        if not able:
            raise problem
        scored |= {each.layer: each for each in able}
    return list(scored.values())


def score(
    name: str, model: nn.Module, units: Sequence[Units], batches: Batches = (), loss: Loss = F.cross_entropy
) -> dict[str, Tensor]:
    """Return the scores of all :func:`layers`, float64 (units,) on the CPU, for ``selection.of_units``."""
    scored = layers(name, model, units)
    channels = registry.find("pruning.criteria", name).score(model, scored, batches, loss)
    pairs = list(zip(scored, pooled(scored, channels), strict=True))
    for unit, own in pairs:
        if not own.isfinite().all():
            raise UserError(f"criterion={name}: layer {unit.layer!r} has scores that are not finite")
    return {unit.layer: own.cpu() for unit, own in pairs}


def check_maps(model: nn.Module, units: Sequence[Units]) -> None:
    """Refuse layers that are no convolutions, and so make no feature maps (UserError)."""
    for unit in units:
        if weight_of(model, unit.layer).ndim != 4:
            raise UserError(f"layer {unit.layer!r}: makes no feature maps, which this criterion looks at")


@torch.no_grad()
def mean_over_images(
    model: nn.Module, units: Sequence[Units], batches: Batches, measure: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """Return the mean over all images of a measure of each channel's map, float64 (channels,) for each layer.

    A layer's maps are its output after the batch-norm that follows it (if one does) and a ReLU, whatever
    activation the network itself has. batches: images (B, C, H, W) with labels, which are not used; UserError
    if there are none, or if maps are not finite. measure: maps (B, c, H, W) -> (B, c).
    """
    sources = [norm_name(model, unit) or unit.layer for unit in units]
    totals = {source: torch.zeros((), dtype=torch.float64) for source in sources}
    seen = Counter[str]()  # maps, of a layer that is called several times those of all calls

    def record(source: str, _: nn.Module, __: Any, maps: Tensor) -> None:
        if not maps.isfinite().all():
            raise UserError(f"batches: the feature maps of {source!r} are not finite")
        seen[source] += len(maps)
        totals[source] = totals[source] + measure(F.relu(maps)).double().sum(dim=0).cpu()

    with eval_mode(model), ExitStack() as hooks:
        for source in sources:
            layer = model.get_submodule(source)
            hooks.enter_context(layer.register_forward_hook(partial(record, source)))
        for inputs, _ in batches:
            call(model, inputs)
    if not seen:
        raise UserError("batches: this criterion looks at feature maps and needs images, got none")
    if unused := totals.keys() - seen.keys():
        raise UserError(f"batches: {min(unused)!r} makes no feature maps for them")
    return [totals[source] / seen[source] for source in sources]
