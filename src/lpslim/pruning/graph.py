"""Removal of units along Torch-Pruning's dependency graph; the only file that knows Torch-Pruning."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from lpslim.base.errors import UserError
from lpslim.base.modules import eval_mode, matches
from lpslim.pruning.cost import layer_costs
from lpslim.pruning.units import Prunable, Units

logging.getLogger("torch_pruning").setLevel(logging.ERROR)

# Operations that join the channels of several layers, by Torch-Pruning's names
JOINING = ("_ConcatOp", "_SplitOp", "AddBackward0", "SubBackward0")
# Its errors over a network that it does not understand; RuntimeError is the network's own
UNTRACEABLE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


def find_units(model: nn.Module, example: Tensor, prunables: Sequence[Prunable]) -> list[Units]:
    """Return the units of each prunable layer with every layer that they touch.

    A unit is one output channel; where a layer is, or feeds, a convolution in groups, it is one channel of
    each group, so that the groups stay alike. example: one input, on the model's device. UserError if a layer
    is unknown, shares channels with another, is grouped in several ways, or touches layers with one weight.
    """
    return _find(_graph(model, example), model, prunables)


def discover(model: nn.Module, example: Tensor, protected: Sequence[str] = ()) -> list[Units]:
    """Return the units of every layer that can lose channels without a residual stream losing any.

    These are the convolutions and linear layers whose outputs are consumed, and neither added to nor
    concatenated with others. A product with a gate, as in squeeze-and-excitation, is no obstacle: the gate
    loses the channel too. A layer whose weight another one has as well, and what feeds it, keep their width.
    protected: layers, modules with all in them, or globs; UserError if one is not in the network.
    """
    modules = dict(model.named_modules())
    if unknown := [entry for entry in protected if not any(matches(name, [entry]) for name in modules)]:
        raise UserError(f"protected: the network has no {unknown[0]!r}")
    layer_costs(model, example)  # refuses in a moment networks that the trace would take hours for
    graph, tied = _graph(model, example), _tied(model)
    found: list[Units] = []
    owned: set[str] = set()
    for name, module in modules.items():
        if name in owned or not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        try:
            units, alone = _described(graph, modules, Prunable(name))
        except UserError:  # the trace does not see it, or it is grouped in several ways
            continue
        if alone:
            touched = {name, *units.producers}
            owned |= touched
            bound = any(matches(layer, protected) for layer in touched)
            if units.consumers and not bound and not tied.keys() & {*touched, *units.consumers}:
                found.append(units)
    return found


def prune(model: nn.Module, example: Tensor, kept: Mapping[str, Sequence[int]]) -> None:
    """Remove, in place, the units that are not in ``kept`` (layer name -> sorted original indices).

    Nothing is removed when it raises: a UserError as :func:`find_units`, or over indices that are no choice.
    """
    graph, modules = _graph(model, example), dict(model.named_modules())
    found = _find(graph, model, [Prunable(name) for name in kept])
    for units in found:
        units.check(kept[units.layer])
    with _all_trainable(model):  # what replaces a frozen parameter is frozen again
        for units in found:
            gone = sorted(set(range(units.size)) - set(kept[units.layer]))
            if gone:
                channels = [group * units.size + unit for group in range(units.groups) for unit in gone]
                _group(graph, modules, units.layer, channels).prune()


def _find(graph: Any, model: nn.Module, prunables: Sequence[Prunable]) -> list[Units]:
    modules, tied = dict(model.named_modules()), _tied(model)
    found = [_described(graph, modules, prunable)[0] for prunable in prunables]
    owner: dict[str, str] = {}
    for units in found:
        for name in units.producers:
            if owner.setdefault(name, units.layer) != units.layer:
                raise UserError(f"layers {owner[name]!r} and {units.layer!r} share their channels")
        for name in (*units.producers, *units.consumers):
            if name in tied:
                names = " and ".join(map(repr, tied[name]))
                raise UserError(f"layer {units.layer!r}: {names} have one weight: its channels stay")
    return found


def _described(graph: Any, modules: Mapping[str, nn.Module], prunable: Prunable) -> tuple[Units, bool]:
    """Return a layer's units, and whether no other layer's channels are joined with them."""
    parts = _group(graph, modules, prunable.layer)
    names, channels = {module: name for name, module in modules.items()}, list(parts[0][1])
    producers: list[str] = []
    consumers: list[str] = []
    groupings, alone = {1}, True
    for part, indices in parts:
        module, produces = part.target.module, graph.is_out_channel_pruning_fn(part.handler)
        operations = type(module).__name__, part.target.name.rpartition("(")[2].rstrip(")")
        alone = alone and not {*operations} & {*JOINING} and (not produces or list(indices) == channels)
        if module not in names:
            continue  # a functional operation: an activation, a reshape
        (producers if produces else consumers).append(names[module])
        if isinstance(module, nn.Conv2d) and not module.groups == module.in_channels == module.out_channels:
            groupings.add(module.groups)  # depthwise ones follow any other grouping
    if len(groupings) > 2:
        several = sorted(groupings)[1:]
        raise UserError(f"layer {prunable.layer!r}: its channels are grouped in several ways, {several}")
    size, groups = len(channels) // max(groupings), max(groupings)
    return Units(prunable.layer, size, prunable.sensitive, tuple(producers), tuple(consumers), groups), alone


def _tied(model: nn.Module) -> dict[str, list[str]]:
    """Return the modules that have a parameter in common with others, each with all that have it."""
    owners: dict[nn.Parameter, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in set(module.parameters(recurse=False)):
            owners.setdefault(parameter, []).append(name)
    return {name: names for names in owners.values() if len(names) > 1 for name in names}


@contextmanager
def _all_trainable(model: nn.Module) -> Iterator[None]:
    """Unfreeze every parameter; afterwards each name has its own flag again, on whatever it then names."""
    flags = {name: p.requires_grad for name, p in model.named_parameters(remove_duplicate=False)}
    try:
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
        yield
    finally:
        for name, parameter in model.named_parameters(remove_duplicate=False):
            parameter.requires_grad_(flags[name])


def _graph(model: nn.Module, example: Tensor) -> Any:
    # the trace follows gradients: it would not see what is frozen
    with eval_mode(model), _all_trainable(model), torch.enable_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Unwrapped parameters")  # scales of residual streams: untouched
        try:
            return tp.DependencyGraph().build_dependency(model, example_inputs=example)
        except UNTRACEABLE as problem:
            name, reason = type(model).__name__, f"{type(problem).__name__}: {problem}"
            raise UserError(f"{name}: Torch-Pruning cannot follow its channels ({reason})") from problem


def _group(graph: Any, modules: Mapping[str, nn.Module], name: str, channels: list[int] | None = None) -> Any:
    """Return all that goes with channels of a layer (by default all of them), as (part, its indices)."""
    layer = modules.get(name)
    if not isinstance(layer, nn.Conv2d | nn.Linear):
        raise UserError(f"layer {name!r}: the network has no convolution or linear layer of this name")
    cut = tp.prune_conv_out_channels if isinstance(layer, nn.Conv2d) else tp.prune_linear_out_channels
    try:
        return graph.get_pruning_group(layer, cut, idxs=channels or list(range(layer.weight.shape[0])))
    except ValueError as problem:
        raise UserError(f"layer {name!r}: Torch-Pruning does not see it ({problem})") from problem
