"""Torch-Pruning's graph of a network, mended where it fails; walks along it; cuts of single layers."""

import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch_pruning as tp
from torch import nn
from torch_pruning.dependency import index_mapping

from lpslim.base.errors import UserError
from lpslim.base.modules import Example, attributes_kept, call, eval_mode, tensors
from lpslim.pruning import regrouping
from lpslim.pruning.regrouping import Index, Regrouping
from lpslim.pruning.units import CONVOLUTIONS, ROOTS, Cut, is_depthwise, width_of

logging.getLogger("torch_pruning").setLevel(logging.ERROR)

# Operations that join the channels of several layers, by Torch-Pruning's names; sums do where both operands
# are computed (one with a number or a buffer has a single input in the graph)
JOINING, SUMS = {"_ConcatOp", "_SplitOp"}, {"AddBackward0", "SubBackward0"}
# Its errors over a network that it does not understand; RuntimeError is the network's own
UNTRACEABLE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
Place = tuple[Any, Any]  # a node of the graph, and the function that cuts its outputs or its inputs
Channels = dict[int, list[int]]  # of one unit: number of a place -> indices there


class Traced(tp.DependencyGraph):  # type: ignore[misc]
    """Dependency graph of a network, traced on an example.

    ``unclear``: operations whose channels cannot be followed. ``padded``: those that pad channels with zeros,
    which have to stay where they are. ``widest``: the most inputs or outputs of any layer. UserError if
    Torch-Pruning cannot follow the network at all.
    """

    def __init__(self, model: nn.Module, example: Example) -> None:
        super().__init__()
        self.modules, self.parameters = dict(model.named_modules()), dict(model.named_parameters())
        self.names: dict[Any, str] = {part: name for name, part in (self.modules | self.parameters).items()}
        self.module2node: dict[Any, Any] = {}
        self.linked, self.unclear, self.padded = False, set[Any](), set[Any]()
        self.widest = max((size for p in model.parameters() for size in p.shape), default=0)
        # the trace follows gradients: it would not see what is frozen
        with (attributes_kept(model), eval_mode(model), all_trainable(model), torch.enable_grad(),
              warnings.catch_warnings()):  # fmt: skip
            for notice in ("Unwrapped parameters", "Maximum recursive depth"):  # what is unclear stays whole
                warnings.filterwarnings("ignore", notice)
            try:
                self.build_dependency(model, example, forward_fn=call, output_transform=tensors)
            except UNTRACEABLE as problem:
                if not self.linked:
                    name, reason = type(model).__name__, f"{type(problem).__name__}: {problem}"
                    reason = f"Torch-Pruning cannot follow its channels ({reason})"
                    raise UserError(f"{name}: {reason}") from problem
                self._map_one_by_one()
            self._map_regrouping()

    def outputs(self, layer: str) -> Place:
        """Return the place of a layer's outputs; UserError if it has none that can be followed."""
        module = self.modules.get(layer)
        if not isinstance(module, ROOTS):
            raise UserError(f"layer {layer!r}: the network has no convolution or linear layer of this name")
        if module not in self.module2node:
            raise UserError(f"layer {layer!r}: nothing calls it by itself, or it goes on without a gradient")
        return self.module2node[module], self.get_pruner_of_module(module).prune_out_channels

    def maker(self, units: str) -> str:
        """Return the layer that makes units of this name: ``c`` itself, or of ``c:2``, its second kind."""
        return units if units in self.modules else units.rpartition(":")[0] or units

    def _build_dependency(self, module2node: Any) -> None:
        super()._build_dependency(module2node)
        self.linked = True  # what is left to do are the maps of indices

    def _map_one_by_one(self) -> None:
        """Map the indices at each operation by itself: one that fails takes no other with it."""
        every = self.module2node
        for module, node in every.items():
            self.module2node = {module: node}
            try:
                index_mapping.update_index_mapping(self)
            except UNTRACEABLE:
                self.unclear.add(node)
        self.module2node = every

    def _map_regrouping(self) -> None:
        """Map channels through operations that Torch-Pruning takes for elementwise ones."""
        for node in self.module2node.values():
            if not (forth := regrouping.pairs(node.grad_fn)):
                continue
            back = [(output, own) for own, output in forth]
            for source, target, pairs in ((node.inputs[0], node, forth), (node, node.inputs[0], back)):
                for edge in source.dependencies:
                    if edge.target is target:
                        edge.index_mapping[0] = Regrouping(pairs)
            if "ConstantPad" in node.name:
                self.padded.add(node)


class Walk:
    """Traversal of the dependency graph from a layer: channels that go together get one label.

    layers: one, to which all that share channels with it are appended, even if it raises. UserError if
    the channels that go together do not line up, or cannot be followed.
    """

    def __init__(self, traced: Traced, layers: list[str]) -> None:
        self.traced, self.joined = traced, False
        self.reached: dict[Place, dict[int, int]] = {}  # indices there -> labels
        self.same: list[int] = []  # label -> one that it is the same as
        self.fixed: set[int] = set()  # of channels that have to stay
        for layer in layers:  # which grow
            place = traced.outputs(layer)
            known = self.reached.setdefault(place, {})
            own = [i for i in range(width_of(traced.modules[layer])) if i not in known]
            new = [Index(i, label) for label, i in enumerate(own, len(self.same))]
            self.same += [index.root_idx for index in new]
            known |= dict(new)
            self._spread(layers, place, new)
        self.places = list(self.reached)

    def units(self) -> list[Channels]:
        """Return the channels of each unit, at the layers and loose parameters among the places."""
        units: dict[int, Channels] = {}
        fixed = {*map(self._label, self.fixed)}
        for number, ((node, _), labels) in enumerate(self.reached.items()):
            if node.module not in self.traced.names:
                continue
            for index, label in labels.items():
                if (shared := self._label(label)) not in fixed:
                    units.setdefault(shared, {}).setdefault(number, []).append(index)
        return list(units.values())

    def _label(self, label: int) -> int:
        while self.same[label] != label:
            self.same[label] = label = self.same[self.same[label]]
        return label

    def _spread(self, layers: list[str], place: Place, first: list[Any]) -> None:
        """Follow channels to all that go with them."""
        traced, pending = self.traced, [(*place, first)]
        while pending:
            node, cut, found = pending.pop()
            if node in traced.unclear:
                reason = f"its channels pass {node.name}, which cannot be followed"
                raise UserError(f"layer {layers[0]!r}: {reason}")
            operations = {type(node.module).__name__, node.name.rpartition("(")[2].rstrip(")")}
            self.joined |= bool(operations & (JOINING | SUMS if len(node.inputs) > 1 else JOINING))
            for edge in node.dependencies:
                target = edge.target, edge.handler
                mapped = self._mapped(found, edge) if edge.is_triggered_by(cut) else []
                if not mapped or not self._takes(layers[0], edge, max(index.idx for index in mapped)):
                    continue
                # in windows or patches they would multiply without end
                if len({index.idx for index in mapped}) > traced.widest:
                    where = f"its channels pass {edge.target.name}"
                    raise UserError(f"layer {layers[0]!r}: {where}, where they cannot be told from positions")
                known, new = self.reached.setdefault(target, {}), []
                for index in mapped:
                    if index.idx in known:
                        self.same[self._label(index.root_idx)] = self._label(known[index.idx])
                    else:
                        known[index.idx] = index.root_idx
                        new.append(index)
                pending += [(*target, new)] if new else []
                module, name = edge.target.module, traced.names.get(edge.target.module)
                made = isinstance(module, ROOTS) and traced.is_out_channel_pruning_fn(edge.handler)
                if name and made and name not in layers:
                    layers.append(name)

    def _mapped(self, found: Sequence[Any], edge: Any) -> Sequence[Any]:
        """Return where channels are at an edge's target: with one go its likes in a convolution's groups."""
        mapped, module = found, edge.target.module
        for mapping in filter(None, edge.index_mapping):
            mapped = mapping(mapped)
        if edge.source in self.traced.padded and len(mapped) < len(found):
            self.fixed |= {index.root_idx for index in found} - {index.root_idx for index in mapped}
        if isinstance(module, CONVOLUTIONS) and module.groups > 1 and not is_depthwise(module):
            outputs = self.traced.is_out_channel_pruning_fn(edge.handler)
            width = (module.out_channels if outputs else module.in_channels) // module.groups
            alike = {index.idx % width: index.root_idx for index in mapped}
            likes = (i for i in range(width * module.groups) if i % width in alike)
            mapped = [*mapped, *(Index(i, alike[i % width]) for i in likes)]
        return mapped

    def _takes(self, layer: str, edge: Any, highest: int) -> bool:
        """Return whether an edge's target has these channels: of width 1 it is broadcast, and loses none.

        UserError if it is too narrow otherwise.
        """
        node, traced = edge.target, self.traced
        if node.module not in traced.names:
            return True
        outputs = traced.is_out_channel_pruning_fn(edge.handler)
        width = traced.get_out_channels(node) if outputs else traced.get_in_channels(node)
        if width is not None and 1 < width <= highest:
            other = traced.names[node.module]
            raise UserError(f"layer {layer!r}: its channels do not line up with {other!r}")
        return width is None or highest < width


def apply(model: nn.Module, cuts: Iterable[Cut]) -> None:
    """Cut the network that was traced, or a copy of it, in place; cuts of one layer may overlap."""
    indices: dict[tuple[str, bool, int], set[int]] = {}
    for cut in cuts:
        indices.setdefault((cut.name, cut.reads, cut.axis), set()).update(cut.indices)
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    known = tp.DependencyGraph()
    pruners = {name: known.get_pruner_of_module(modules[name]) for name, *_ in indices if name in modules}
    with all_trainable(model):  # what replaces a frozen parameter is frozen again
        for (name, reads, axis), gone in indices.items():
            if name in modules:
                module = modules[name]
                function = pruners[name].prune_in_channels if reads else pruners[name].prune_out_channels
                by_channel = isinstance(module, nn.GroupNorm) and module.num_groups == module.num_channels
                function(module, sorted(gone))
                if by_channel:  # Torch-Pruning leaves the number of groups
                    module.num_groups = module.num_channels
            else:
                old, (owner, _, own) = parameters[name], name.rpartition(".")
                left = [i for i in range(old.shape[axis]) if i not in gone]
                new = old.detach().index_select(axis, torch.tensor(left, device=old.device))
                setattr(model.get_submodule(owner), own, nn.Parameter(new))


@contextmanager
def all_trainable(model: nn.Module) -> Iterator[None]:
    """Unfreeze every parameter; afterwards each name has its own flag again, on whatever it then names."""
    flags = {name: p.requires_grad for name, p in model.named_parameters(remove_duplicate=False)}
    try:
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
        yield
    finally:
        for name, parameter in model.named_parameters(remove_duplicate=False):
            parameter.requires_grad_(flags[name])
