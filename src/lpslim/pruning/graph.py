"""Removal of units along Torch-Pruning's dependency graph; the only file that knows Torch-Pruning."""

import logging
import warnings
from collections import namedtuple
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from lpslim.base.errors import UserError
from lpslim.base.modules import Example, call, eval_mode, matches
from lpslim.pruning.units import CONVOLUTIONS, Prunable, Units

logging.getLogger("torch_pruning").setLevel(logging.ERROR)

ROOTS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)  # layers whose outputs may be removed
# Operations that join the channels of several layers, by Torch-Pruning's names
JOINING = ("_ConcatOp", "_SplitOp", "AddBackward0", "SubBackward0")
REMEDY = (
    "take weight_norm, spectral_norm, parametrisations or masks off first (remove_parametrizations, "
    "remove_weight_norm, remove_spectral_norm or prune.remove of torch.nn.utils)"
)
# Its errors over a network that it does not understand; RuntimeError is the network's own
UNTRACEABLE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)

Index = namedtuple("Index", "idx root_idx")  # a channel as Torch-Pruning maps it, and the first layer's


class Cut(NamedTuple):
    """Indices that a layer, or a loose parameter, loses: of its outputs, or of its inputs (``reads``)."""

    name: str  # empty for an operation, which has nothing to lose
    reads: bool
    indices: list[int]
    axis: int = 0  # of a loose parameter


def find_units(model: nn.Module, example: Example, prunables: Sequence[Prunable]) -> list[Units]:
    """Return the units of each prunable layer with every layer that they touch.

    A unit is one output channel; where a layer is, or feeds, a convolution in groups, it is one channel of
    each group, so that the groups stay alike. example: one input, on the model's device. UserError if a layer
    is unknown, shares channels with another, is grouped in several ways, or touches layers with one weight.
    """
    return Graph(model, example).units(prunables)


def discover(model: nn.Module, example: Example, protected: Sequence[str] = ()) -> list[Units]:
    """Return the units that :meth:`Graph.discover` finds."""
    return Graph(model, example).discover(protected)[0]


def prune(model: nn.Module, example: Example, kept: Mapping[str, Sequence[int]]) -> None:
    """Remove, in place, the units that are not in ``kept`` (layer name -> sorted original indices).

    Nothing is removed when it raises: a UserError as :func:`find_units`, or over indices that are no choice.
    """
    apply(model, [cut for cuts in Graph(model, example).cuts(kept).values() for cut in cuts])


class Graph:
    """Dependency graph of a network: traced once on an example, then walked for every layer.

    UserError if Torch-Pruning cannot follow the network at all.
    """

    def __init__(self, model: nn.Module, example: Example) -> None:
        import torch_pruning as tp  # takes seconds where timm is installed, which it imports whole

        self.modules = dict(model.named_modules())
        self.parameters = dict(model.named_parameters())
        self.names: dict[Any, str] = {part: name for name, part in (self.modules | self.parameters).items()}
        self.tied = _tied(model)
        # the trace follows gradients: it would not see what is frozen
        with eval_mode(model), _all_trainable(model), torch.enable_grad(), warnings.catch_warnings():
            for notice in ("Unwrapped parameters", "Maximum recursive depth"):  # what is unclear stays whole
                warnings.filterwarnings("ignore", notice)
            try:
                self.traced = tp.DependencyGraph().build_dependency(model, example, forward_fn=call)
            except UNTRACEABLE as problem:
                name, reason = type(model).__name__, f"{type(problem).__name__}: {problem}"
                raise UserError(f"{name}: Torch-Pruning cannot follow its channels ({reason})") from problem

    def units(self, prunables: Sequence[Prunable]) -> list[Units]:
        """Return the units of these layers, as :func:`find_units`."""
        found = [self._described(p.layer, p.sensitive, self._walk(p.layer)) for p in prunables]
        owner: dict[str, str] = {}
        for units in found:
            for name in units.producers:
                if owner.setdefault(name, units.layer) != units.layer:
                    raise UserError(f"layers {owner[name]!r} and {units.layer!r} share their channels")
            for name in (*units.producers, *units.consumers):
                if name in self.tied:
                    names = " and ".join(map(repr, self.tied[name]))
                    raise UserError(f"layer {units.layer!r}: {names} have one weight: its channels stay")
        return found

    def discover(self, protected: Sequence[str] = ()) -> tuple[list[Units], dict[str, str]]:
        """Return the units of every layer that can lose channels without a residual stream losing any.

        These are the convolutions and linear layers whose outputs are consumed, and neither added to nor
        concatenated with others. A product with a gate, as in squeeze-and-excitation, is no obstacle: the
        gate loses the channel too. A layer whose weight another one has as well, and what feeds it, keep
        their width. protected: layers, modules with all in them, or globs; UserError if one is not in the
        network. Beside them, layers that cannot be followed, each with the reason.
        """
        if unknown := [entry for entry in protected if not any(matches(n, [entry]) for n in self.modules)]:
            raise UserError(f"protected: the network has no {unknown[0]!r}")
        found, left, owned = list[Units](), dict[str, str](), set[str]()
        for name, module in self.modules.items():
            if name in owned or not isinstance(module, ROOTS) or len(module.weight) == 1:
                continue
            try:
                walked = self._walk(name, alone=True)
                units = self._described(name, False, walked) if walked else None
            except (UserError, AssertionError, *UNTRACEABLE) as problem:
                if not matches(name, protected):
                    left[name] = str(problem).removeprefix(f"layer {name!r}: ")
                continue
            if units:
                touched = {name, *units.producers}
                owned |= touched
                bound = any(matches(layer, protected) for layer in touched)
                if units.consumers and not bound and not self.tied.keys() & {*touched, *units.consumers}:
                    found.append(units)
        return found, left

    def cuts(self, kept: Mapping[str, Sequence[int]]) -> dict[str, list[Cut]]:
        """Return, for each layer, the cuts that leave the units ``kept``; UserError as :func:`prune`."""
        cuts = {}
        for units in self.units([Prunable(name) for name in kept]):
            units.check(kept[units.layer])
            gone = sorted(set(range(units.size)) - set(kept[units.layer]))
            channels = [group * units.size + unit for group in range(units.groups) for unit in gone]
            walked = self._walk(units.layer, channels) if channels else []
            cuts[units.layer] = [cut for cut in walked if cut.name]
        return cuts

    def _described(self, layer: str, sensitive: bool, cuts: Sequence[Cut]) -> Units:
        producers, consumers, groupings, loose = list[str](), list[str](), {1}, 0
        for cut in cuts:
            module = self.modules.get(cut.name) if cut.name else None
            if isinstance(module, (*CONVOLUTIONS, nn.Linear)) and not isinstance(module.weight, nn.Parameter):
                raise UserError(f"layer {layer!r}: the weight of {cut.name!r} is computed: {REMEDY}")
            if isinstance(module, CONVOLUTIONS):
                depthwise = module.groups == module.in_channels == module.out_channels
                groupings.add(1 if depthwise else module.groups)  # these follow any other grouping
            if module is not None:
                (consumers if cut.reads else producers).append(cut.name)
            elif cut.name:
                shape = self.parameters[cut.name].shape
                loose += shape.numel() // shape[cut.axis] * len(cut.indices)
        several, groups = sorted(groupings - {1}), max(groupings)
        if len(several) > 1:
            raise UserError(f"layer {layer!r}: its channels are grouped in several ways, {several}")
        size, touched = len(cuts[0].indices) // groups, (tuple(producers), tuple(consumers))
        return Units(layer, size, sensitive, *touched, groups, loose=loose // max(size, 1))

    def _walk(self, layer: str, channels: Sequence[int] = (), *, alone: bool = False) -> list[Cut]:
        """Return all that goes with channels of a layer (by default all of them).

        alone: nothing is returned as soon as another layer's channels are joined with them. UserError if the
        trace does not see the layer, or if the channels that go together do not line up.
        """
        module = self.modules.get(layer)
        if not isinstance(module, ROOTS):
            raise UserError(f"layer {layer!r}: the network has no convolution or linear layer of this name")
        if module not in self.traced.module2node:
            raise UserError(f"layer {layer!r}: nothing calls it by itself, or it goes on without a gradient")
        own, produces = list(channels or range(len(module.weight))), self.traced.is_out_channel_pruning_fn
        first = self.traced.module2node[module], self.traced.get_pruner_of_module(module).prune_out_channels
        indices = {first: dict.fromkeys(own)}  # of every node and way to cut it, in the order found
        pending: list[tuple[Any, Any, Sequence[Any]]] = [(*first, [Index(i, i) for i in own])]
        while pending:
            node, cut, found = pending.pop()
            operations = type(node.module).__name__, node.name.rpartition("(")[2].rstrip(")")
            if alone and {*operations} & {*JOINING}:
                return []
            for edge in node.dependencies:
                mapped = found if edge.is_triggered_by(cut) else []
                for mapping in filter(None, edge.index_mapping):
                    mapped = mapping(mapped)
                if mapped and self._takes(layer, edge, max(index.idx for index in mapped)):
                    known = indices.setdefault((edge.target, edge.handler), {})
                    if new := [index for index in mapped if index.idx not in known]:
                        known |= dict.fromkeys(index.idx for index in new)
                        pending.append((edge.target, edge.handler, new))
        walked = [
            Cut(self.names.get(node.module, ""), not produces(cut), list(known), node.pruning_dim)
            for (node, cut), known in indices.items()
        ]
        return [] if alone and any(not cut.reads and cut.indices != own for cut in walked) else walked

    def _takes(self, layer: str, edge: Any, highest: int) -> bool:
        """Return whether channels go on to an edge's target: not to a single one, which is broadcast."""
        node, traced = edge.target, self.traced
        if node.module not in self.names:
            return True
        outputs = traced.is_out_channel_pruning_fn(edge.handler)
        width = traced.get_out_channels(node) if outputs else traced.get_in_channels(node)
        if width is not None and 1 < width <= highest:
            raise UserError(f"layer {layer!r}: its channels do not line up with {self.names[node.module]!r}")
        return width is None or highest < width


def apply(model: nn.Module, cuts: Iterable[Cut]) -> None:
    """Cut the network that was traced, or a copy of it, in place; cuts of one layer may overlap."""
    import torch_pruning as tp

    indices: dict[tuple[str, bool, int], set[int]] = {}
    for cut in cuts:
        indices.setdefault((cut.name, cut.reads, cut.axis), set()).update(cut.indices)
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    known = tp.DependencyGraph()
    pruners = {name: known.get_pruner_of_module(modules[name]) for name, *_ in indices if name in modules}
    with _all_trainable(model):  # what replaces a frozen parameter is frozen again
        for (name, reads, axis), gone in indices.items():
            if name in modules:
                function = pruners[name].prune_in_channels if reads else pruners[name].prune_out_channels
                function(modules[name], sorted(gone))
            else:
                old, (owner, _, own) = parameters[name], name.rpartition(".")
                left = [i for i in range(old.shape[axis]) if i not in gone]
                new = old.detach().index_select(axis, torch.tensor(left, device=old.device))
                setattr(model.get_submodule(owner), own, nn.Parameter(new))


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
