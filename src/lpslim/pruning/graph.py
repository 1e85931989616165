"""Removing units for good, along Torch-Pruning's dependency graph; only this file knows it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from lpslim.base.errors import UserError
from lpslim.base.modules import evaluating
from lpslim.pruning.units import Prunable, Units, is_protected

logging.getLogger("torch_pruning").setLevel(logging.ERROR)

# What joins channels of several layers, by Torch-Pruning's names for operations
MIXING = ("_ConcatOp", "_SplitOp")
ADDING = ("AddBackward0", "SubBackward0")
# What it stumbles with over a network that it does not understand; RuntimeError is the network's own
UNTRACEABLE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


def find_units(model: nn.Module, example: Tensor, prunables: Sequence[Prunable]) -> list[Units]:
    """Return the units of each prunable layer with every layer that they touch.

    A unit is one output channel; where a layer is, or feeds, a convolution in groups, it is one
    channel of each group, so that the groups stay alike.

    example: (1, C, H, W), of the shape that the network is used with.

    Raises:
        UserError: a layer is unknown, two prunable layers share their channels, its channels are
            grouped in more than one way, or it touches layers that have one weight.
    """
    return _units(_graph(model, example), model, prunables)


def discover(model: nn.Module, example: Tensor, protected: Sequence[str] = ()) -> list[Units]:
    """Return the units of every layer that can lose channels without a residual stream losing any.

    These are the convolutions and linear layers whose outputs are consumed, are neither added to nor
    concatenated with others (so streams keep their width), and are not the network's own outputs. A
    product with a gate, as in squeeze-and-excitation, is no obstacle: the gate loses the channel too.
    Nor is a layer that is called several times; but one whose weight another layer has as well, and
    what feeds it, keep their width.

    Args:
        model: any network that Torch-Pruning can trace.
        example: (1, C, H, W), on the model's device.
        protected: layers, modules with all that is in them, or globs, that keep every unit.

    Raises:
        UserError: a protected name is not in the network.
    """
    modules = dict(model.named_modules())
    if unknown := [each for each in protected if not any(is_protected(name, [each]) for name in modules)]:
        raise UserError(f"protected: the network has no {unknown[0]!r}")
    graph, tied = _graph(model, example), _tied(model)
    found: list[Units] = []
    owned: set[str] = set()
    for name, module in modules.items():
        if not isinstance(module, nn.Conv2d | nn.Linear) or name in owned:
            continue
        try:
            parts = list(_group(graph, module, list(range(module.weight.shape[0]))))
        except ValueError:  # the trace does not see it: nn.MultiheadAttention's, say
            continue
        if not _stands_alone(graph, module, parts):
            continue
        each = _described(graph, modules, name, parts, sensitive=False)
        touched = (name, *each.producers)
        owned.update(touched)
        bound = any(is_protected(layer, protected) for layer in touched)
        if each.consumers and not bound and not tied.keys() & {*touched, *each.consumers}:
            found.append(each)
    return found


def prune(model: nn.Module, example: Tensor, kept: Mapping[str, Sequence[int]]) -> None:
    """Remove, in place, the units that are not in ``kept`` (layer name -> original indices).

    example: (1, C, H, W), on the model's device. Nothing is removed when it raises.

    Raises:
        UserError: as :func:`find_units`, or indices that are not a sorted, non-empty choice of
            a layer's units.
    """
    graph = _graph(model, example)
    units = _units(graph, model, [Prunable(name) for name in kept])
    for each in units:
        each.check(kept[each.layer])
    modules = dict(model.named_modules())
    with _all_trainable(model):  # what replaces a frozen parameter is frozen again
        for each in units:
            gone = sorted(set(range(each.size)) - set(kept[each.layer]))
            if gone:
                channels = [group * each.size + unit for group in range(each.groups) for unit in gone]
                _group(graph, _layer(modules, each.layer), channels).prune()


def _units(graph: Any, model: nn.Module, prunables: Sequence[Prunable]) -> list[Units]:
    modules, tied = dict(model.named_modules()), _tied(model)
    found: list[Units] = []
    owner: dict[str, str] = {}
    for wanted in prunables:
        layer = _layer(modules, wanted.layer)
        try:
            parts = list(_group(graph, layer, list(range(layer.weight.shape[0]))))
        except ValueError as problem:
            raise UserError(f"layer {wanted.layer!r}: Torch-Pruning does not see it ({problem})") from problem
        each = _described(graph, modules, wanted.layer, parts, wanted.sensitive)
        for name in each.producers:
            if owner.setdefault(name, each.layer) != each.layer:
                raise UserError(f"layers {owner[name]!r} and {each.layer!r} share their channels")
        if bound := next((tied[name] for name in (*each.producers, *each.consumers) if name in tied), ()):
            raise UserError(
                f"layer {each.layer!r}: {' and '.join(map(repr, bound))} have one weight: its channels stay"
            )
        found.append(each)
    return found


def _described(
    graph: Any, modules: Mapping[str, nn.Module], name: str, parts: Sequence[Any], sensitive: bool
) -> Units:
    names = {module: own for own, module in modules.items()}
    producers: list[str] = []
    consumers: list[str] = []
    groupings = {1}
    for part, _ in parts:
        module = part.target.module
        if module not in names:
            continue  # a functional operation: an activation, a reshape
        if isinstance(module, nn.Conv2d) and not _is_depthwise(module):
            groupings.add(module.groups)
        outgoing = graph.is_out_channel_pruning_fn(part.handler)
        (producers if outgoing else consumers).append(names[module])
    if len(groupings) > 2:
        raise UserError(f"layer {name!r}: its channels are grouped in several ways, {sorted(groupings)[1:]}")
    groups = max(groupings)
    size = _layer(modules, name).weight.shape[0] // groups
    return Units(name, size, sensitive, tuple(producers), tuple(consumers), groups)


def _stands_alone(graph: Any, layer: nn.Conv2d | nn.Linear, parts: Sequence[Any]) -> bool:
    """Whether the layer's channels, and no others, are what every part of its group deals with."""
    channels = list(range(layer.weight.shape[0]))
    for part, indices in parts:
        kind = type(part.target.module).__name__
        if kind in MIXING or part.target.name.rpartition("(")[2].rstrip(")") in ADDING:
            return False
        if graph.is_out_channel_pruning_fn(part.handler) and list(indices) != channels:
            return False
    return True


def _tied(model: nn.Module) -> dict[str, list[str]]:
    """Return the modules that have a parameter in common with others, each with all that have it."""
    owners: dict[nn.Parameter, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in set(module.parameters(recurse=False)):
            owners.setdefault(parameter, []).append(name)
    return {name: names for names in owners.values() if len(names) > 1 for name in names}


def _is_depthwise(conv: nn.Conv2d) -> bool:
    return conv.groups > 1 and conv.groups == conv.in_channels == conv.out_channels


def _layer(modules: Mapping[str, nn.Module], name: str) -> nn.Conv2d | nn.Linear:
    found = modules.get(name)
    if not isinstance(found, nn.Conv2d | nn.Linear):
        raise UserError(f"layer {name!r}: the network has no convolution or linear layer of this name")
    return found


@contextmanager
def _all_trainable(model: nn.Module) -> Iterator[None]:
    """Unfreeze every parameter; afterwards each name has its own flag again, on whatever it then names."""
    flags = {name: each.requires_grad for name, each in model.named_parameters(remove_duplicate=False)}
    try:
        for each in model.parameters():
            each.requires_grad_(each.is_floating_point() or each.is_complex())
        yield
    finally:
        for name, each in model.named_parameters(remove_duplicate=False):
            each.requires_grad_(flags[name])


def _graph(model: nn.Module, example: Tensor) -> Any:
    # the trace follows gradients: it would not see what is frozen
    with evaluating(model), _all_trainable(model), torch.enable_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Unwrapped parameters")  # scales of residual streams: untouched
        try:
            return tp.DependencyGraph().build_dependency(model, example_inputs=example)
        except UNTRACEABLE as problem:
            raise UserError(
                f"{type(model).__name__}: Torch-Pruning cannot follow its channels "
                f"({type(problem).__name__}: {problem})"
            ) from problem


def _group(graph: Any, layer: nn.Module, indices: list[int]) -> Any:
    cut = tp.prune_conv_out_channels if isinstance(layer, nn.Conv2d) else tp.prune_linear_out_channels
    return graph.get_pruning_group(layer, cut, idxs=indices)
