"""Groups of parameters: all that produces a unit, so that the unit is silent when its group is zero."""

from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import nn

from lpslim.base.errors import UserError, reasons
from lpslim.base.modules import Example, call
from lpslim.pruning.budget import Candidates
from lpslim.pruning.check import Comparison
from lpslim.pruning.cost import NORMS
from lpslim.pruning.units import Units, channel_axis
from lpslim.sparsity.channels import Slice

Owners = dict[tuple[str, bool, int], dict[int, int]]  # (name, reads, axis) of a cut -> its index -> the unit
REASON = "its channels are not zero when all that computes them is: an activation changes zero"


def find(
    model: nn.Module, example: Example, candidates: Candidates
) -> tuple[Candidates, list[Slice], dict[str, str]]:
    """Return the candidates whose units can be silenced, their groups, and the layers left alone, and why.

    Units are numbered through all candidates. Whether zero parameters silence a unit is tried out: with those
    of all units at zero, what reads them must read zero on random inputs, in evaluation mode. UserError if no
    layer is left.
    """
    owners = _owners(candidates.units)
    left = _not_zero(model, example, candidates.units, owners) | _rescaled(model, candidates.units)
    if len(left) == len(candidates.units):
        raise UserError(f"no layer can be silenced:{reasons(left)}")
    if left:
        candidates = candidates.excluding(left)
        owners = _owners(candidates.units)
    return candidates, _slices(model, owners), left


def _owners(units: Sequence[Units]) -> Owners:
    """Return which unit each index of a cut belongs to."""
    owners: Owners = {}
    for unit, first in zip(units, _firsts(units), strict=True):
        for cut in unit.cuts:
            rows = enumerate(unit.rows(cut), first)
            own = {index: number for number, row in rows for index in row}
            owners.setdefault((cut.name, cut.reads, cut.axis), {}).update(own)
    return owners


def _firsts(units: Sequence[Units]) -> list[int]:
    return list(accumulate((unit.size for unit in units[:-1]), initial=0))


def _slices(model: nn.Module, owners: Owners) -> list[Slice]:
    """Return the slices of parameters that produce units."""
    modules, parameters, slices = dict(model.named_modules()), dict(model.named_parameters()), {}
    for (name, reads, axis), known in owners.items():
        if reads:
            continue
        module = modules.get(name)
        own = {name: axis} if module is None else {
            f"{name}.{part}": int(part == "weight" and getattr(module, "transposed", False))
            for part, _ in module.named_parameters(recurse=False)
        }  # fmt: skip
        index = sorted(known)
        for parameter, along in own.items():
            if max(index) < parameters[parameter].shape[along]:
                groups = torch.tensor([known[i] for i in index])
                slices[parameter] = Slice(parameter, along, torch.tensor(index), groups)
    return list(slices.values())


@torch.no_grad()
def _not_zero(model: nn.Module, example: Example, units: Sequence[Units], owners: Owners) -> dict[str, str]:
    """Return the layers whose outputs are not zero although all parameters that compute units are."""
    comparison, nonzero = Comparison(model, example), set[int]()
    parameters, modules = dict(comparison.whole.named_parameters()), dict(comparison.whole.named_modules())
    for part in _slices(model, owners):
        parameters[part.name].index_fill_(part.axis, part.channels, 0)
    for (name, reads, _), known in owners.items():
        if reads and name in modules:
            hook = partial(_note_nonzero, known=known, nonzero=nonzero)
            modules[name].register_forward_pre_hook(hook, with_kwargs=True)
    for mode, inputs in comparison.runs:
        if mode == "evaluation":
            call(comparison.whole, inputs)
    pairs = zip(units, _firsts(units), strict=True)
    return {unit.layer: REASON for unit, first in pairs if nonzero & {*range(first, first + unit.size)}}


def _rescaled(model: nn.Module, units: Sequence[Units]) -> dict[str, str]:
    """Return the layers behind which a norm without a scale makes small channels large again."""
    return {
        unit.layer: f"{name!r}, a norm without a scale, makes its channels large again"
        for unit in units
        for name in unit.producers
        if isinstance(norm := model.get_submodule(name), NORMS) and not norm.affine
    }


def _note_nonzero(
    module: nn.Module, inputs: Any, named: dict[str, Any], *, known: dict[int, int], nonzero: set[int]
) -> None:
    first = inputs[0] if inputs else named["input"]
    channels = first.movedim(channel_axis(module), 0)[..., None].flatten(1)
    live = channels.any(dim=1).nonzero().flatten().tolist()
    nonzero.update(known[i] for i in live if i in known)
