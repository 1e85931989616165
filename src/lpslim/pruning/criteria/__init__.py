"""Criteria: one module each, whose ``score`` gives every output channel a number; the lowest go first.

    score(model, units, batches, loss) -> list of float64 tensors (groups * size * head_dim,), one per layer

``batches`` yields (inputs, labels) of the training set, augmented, on the model's device; ``loss`` is the
mean loss of (outputs, labels). One that cannot score every network has ``check(model, units)`` too, which
raises a UserError. Scores of different layers are put on one scale later, by ``selection.SCORE_NORMS``.
"""

from collections.abc import Callable, Iterable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from lpslim.base import registry
from lpslim.base.errors import UserError
from lpslim.pruning.units import Units, pooled

Batches = Iterable[tuple[Tensor, Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]


def score(
    name: str, model: nn.Module, units: Sequence[Units], batches: Batches = (), loss: Loss = F.cross_entropy
) -> list[Tensor]:
    """Return the scores of all units by one criterion: float64 (units,) for each layer, on the CPU."""
    check(name, model, units)
    scores = registry.find("pruning.criteria", name).score(model, units, batches, loss)
    return [s.cpu() for s in pooled(units, scores)]


def layers(name: str, model: nn.Module, units: Sequence[Units]) -> list[Units]:
    """Return the units to score, or of coupled units the member layers that the criterion can score.

    UserError for a criterion that does not exist, or if it can score none that makes a unit.
    """
    scored: dict[str, Units] = {}
    for unit in units:
        able, problem = list[Units](), UserError("")
        for each in unit.members or [unit]:
            try:
                check(name, model, [each])
                able.append(each)
            except UserError as refused:
                problem = refused
        if not able:
            raise problem
        scored |= {each.layer: each for each in able}
    return list(scored.values())


def by_layer(
    name: str, model: nn.Module, units: Sequence[Units], batches: Batches = (), loss: Loss = F.cross_entropy
) -> dict[str, Tensor]:
    """Return the scores of all :func:`layers`, for ``selection.of_units`` to make the units' of."""
    scored = layers(name, model, units)
    values = score(name, model, scored, batches, loss)
    return {unit.layer: own for unit, own in zip(scored, values, strict=True)}


def check(name: str, model: nn.Module, units: Sequence[Units]) -> None:
    """Refuse (UserError) a criterion that does not exist, or a network that it cannot score."""
    criterion = registry.find("pruning.criteria", name)
    if hasattr(criterion, "check"):
        criterion.check(model, units)
