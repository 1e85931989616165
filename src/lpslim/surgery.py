"""Removing units for good, along Torch-Pruning's dependency graph; only this file knows it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from lpslim.errors import UserError
from lpslim.units import Prunable, Units

logging.getLogger("torch_pruning").setLevel(logging.ERROR)


def find_units(model: nn.Module, example: Tensor, prunables: Sequence[Prunable]) -> list[Units]:
    """Return the units of each prunable layer with every layer that they touch.

    example: (1, C, H, W), of the shape that the network is used with.

    Raises:
        UserError: a layer is unknown, two prunable layers share their channels, or a layer
            touches a grouped convolution, which cannot lose single channels.
    """
    return _units(_graph(model, example), model, prunables)


def prune(model: nn.Module, example: Tensor, kept: Mapping[str, Sequence[int]]) -> None:
    """Remove, in place, the units that are not in ``kept`` (layer name -> original indices).

    example: (1, C, H, W), on the model's device. Nothing is removed when it raises.

    Raises:
        UserError: as :func:`find_units`, or indices that are not a sorted, non-empty choice of
            a layer's units.
    """
    graph = _graph(model, example)
    for each in _units(graph, model, [Prunable(name) for name in kept]):
        chosen = list(kept[each.layer])
        if not chosen or chosen != sorted(set(chosen) & set(range(each.size))):
            raise UserError(
                f"layer {each.layer!r}: kept units must be sorted, distinct, in 0..{each.size - 1}, not none"
            )
    for name, indices in kept.items():
        layer = _layer(model, name)
        gone = sorted(set(range(layer.weight.shape[0])) - set(indices))
        if gone:
            _group(graph, layer, gone).prune()


def _units(graph: Any, model: nn.Module, prunables: Sequence[Prunable]) -> list[Units]:
    names = {module: name for name, module in model.named_modules()}
    found: list[Units] = []
    owner: dict[str, str] = {}
    for each in prunables:
        layer = _layer(model, each.layer)
        size = layer.weight.shape[0]
        producers: list[str] = []
        consumers: list[str] = []
        for part, _ in _group(graph, layer, list(range(size))):
            module = part.target.module
            if module not in names:
                continue  # a functional operation: an activation, a reshape
            if isinstance(module, nn.Conv2d) and not _single_channels(module):
                raise UserError(
                    f"layer {each.layer!r} touches the grouped convolution {names[module]!r}, "
                    f"which cannot lose single channels"
                )
            outgoing = graph.is_out_channel_pruning_fn(part.handler)
            (producers if outgoing else consumers).append(names[module])
        for name in producers:
            if owner.setdefault(name, each.layer) != each.layer:
                raise UserError(f"layers {owner[name]!r} and {each.layer!r} share their channels")
        found.append(Units(each.layer, size, each.sensitive, tuple(producers), tuple(consumers)))
    return found


def _single_channels(conv: nn.Conv2d) -> bool:
    # plain or depthwise; the filters of other groups read fixed sets of channels
    return conv.groups == 1 or conv.groups == conv.in_channels == conv.out_channels


def _layer(model: nn.Module, name: str) -> nn.Conv2d | nn.Linear:
    found = dict(model.named_modules()).get(name)
    if not isinstance(found, nn.Conv2d | nn.Linear):
        raise UserError(f"layer {name!r}: the network has no convolution or linear layer of this name")
    return found


def _graph(model: nn.Module, example: Tensor) -> Any:
    training = model.training
    model.eval()
    with torch.enable_grad():
        graph = tp.DependencyGraph().build_dependency(model, example_inputs=example)
    model.train(training)
    return graph


def _group(graph: Any, layer: nn.Module, indices: list[int]) -> Any:
    cut = tp.prune_conv_out_channels if isinstance(layer, nn.Conv2d) else tp.prune_linear_out_channels
    return graph.get_pruning_group(layer, cut, idxs=indices)
