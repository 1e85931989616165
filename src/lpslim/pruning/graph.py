"""Units of a network: channels that can only go together, found by walks along its dependency graph."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from operator import itemgetter

from torch import nn

from lpslim.base.errors import UserError
from lpslim.base.modules import REMEDY, Example, matches, tied
from lpslim.pruning.dependency import UNTRACEABLE, Channels, Traced, Walk, apply
from lpslim.pruning.units import BATCH_NORMS, ROOTS, Cut, Prunable, Units, is_depthwise, width_of


def prune(model: nn.Module, example: Example, kept: Mapping[str, Sequence[int]]) -> None:
    """Remove, in place, the units that are not in ``kept`` (layer name -> sorted original indices).

    Nothing is removed when it raises: a UserError as :meth:`Graph.units`, or over indices that are no choice.
    """
    apply(model, [cut for cuts in Graph(model, example).cuts(kept).values() for cut in cuts])


KNOWN = (*ROOTS, nn.Embedding, nn.EmbeddingBag, nn.LayerNorm)  # layers that need no reason to keep channels


class Graph:
    """Network, traced once on an example on its device, and walked for the channels that go together.

    UserError if Torch-Pruning cannot follow the network at all.
    """

    def __init__(self, model: nn.Module, example: Example) -> None:
        self.traced, self.tied = Traced(model, example), tied(model)
        traced = self.traced
        self.modules, self.parameters, self.names = traced.modules, traced.parameters, traced.names
        self.known: dict[str, Callable[[], Units]] = {}  # by name, of every walk so far

    def units(self, prunables: Sequence[Prunable]) -> list[Units]:
        """Return the units of these layers with every layer that they touch.

        A unit is one output channel and all that can only go with it: where a layer is, or feeds, a
        convolution in groups, one channel of each group; where it is added to others, theirs. UserError if a
        layer is unknown, shares units with another, or touches layers with one weight.
        """
        found, owner = list[Units](), dict[tuple[str, int], str]()
        for layer, sensitive in ((p.layer, p.sensitive) for p in prunables):
            if layer not in self.known:
                self._group([self.traced.maker(layer)])
            if layer not in self.known:
                raise UserError(f"layer {layer!r}: no channel of it can go")
            units = replace(self.known[layer](), sensitive=sensitive)
            for cut in units.cuts:
                first = (cut.name, min(cut.indices))
                if not cut.reads and owner.setdefault(first, layer) != layer:
                    raise UserError(f"layers {owner[first]!r} and {layer!r} share their channels")
            if names := self._one_weight(units):
                raise UserError(f"layer {layer!r}: {names} have one weight: its channels stay")
            found.append(units)
        return found

    def discover(
        self, protected: str | Sequence[str] = (), *, coupled: bool = False
    ) -> tuple[list[Units], dict[str, str]]:
        """Return the units of every layer that can lose channels, and layers that keep them, with the reason.

        These are the convolutions and linear layers whose outputs are consumed; what is protected and the
        outputs of the network are not listed. A product with a gate, as in squeeze-and-excitation, is no
        obstacle: the gate loses the channel too. A layer whose weight another one has as well, and what feeds
        it, keep their width, and so do layers of other types. protected: layers, modules with all in them, or
        globs; UserError if one is not in the network. coupled: also channels that are added to or
        concatenated with others.
        """
        protected = [protected] if isinstance(protected, str) else protected
        if unknown := [entry for entry in protected if not any(matches(n, [entry]) for n in self.modules)]:
            raise UserError(f"protected: the network has no {unknown[0]!r}")
        found, owned, left = list[Units](), set[str](), self._unknown()
        for name, module in self.modules.items():
            if name in owned or not isinstance(module, ROOTS) or width_of(module) == 1:
                continue
            layers = [name]
            try:
                group = self._group(layers)
            except (UserError, AssertionError, *UNTRACEABLE) as problem:
                reason = str(problem).removeprefix(f"layer {name!r}: ")
                if not isinstance(problem, UserError):
                    reason = f"its channels cannot be followed ({type(problem).__name__}: {problem})"
                left |= dict.fromkeys(layers, reason)
                group = []
            owned.update(layers)
            for units in group:
                bound = any(matches(layer, protected) for layer in units.producers)
                if bound or not units.consumers or units.size == 1:
                    continue
                if names := self._one_weight(units):
                    left |= {n: f"{names} have one weight" for n in units.producers if n in layers}
                    continue
                if coupled or not units.coupled:
                    found.append(units)
                    continue
                for layer in [member.layer for member in units.members]:
                    others = [repr(other) for other in layers if other != layer]
                    joined = f"added to those of {others[0]}" if others else "added, concatenated or split"
                    left[layer] = f"its channels are {joined}: coupled=True removes them together"
        return found, {name: reason for name, reason in left.items() if not matches(name, protected)}

    def _unknown(self) -> dict[str, str]:
        """Return the layers of other types whose weight is a matrix, such as GPT-2's, and why they stay."""
        matrices = {name for name, parameter in self.parameters.items() if parameter.ndim > 1}
        return {
            name: f"{type(module).__name__} is none of torch.nn's convolutions and linear layers"
            for name, module in self.modules.items()
            if f"{name}.weight" in matrices and not isinstance(module, KNOWN)
        }

    def cuts(self, kept: Mapping[str, Sequence[int]]) -> dict[str, list[Cut]]:
        """Return, for each layer, the cuts that leave the units ``kept``; UserError as :func:`prune`."""
        cuts = {}
        for units in self.units([Prunable(name) for name in kept]):
            units.check(kept[units.layer])
            cuts[units.layer] = units.without(sorted({*range(units.size)} - {*kept[units.layer]}))
        return cuts

    def _one_weight(self, units: Units) -> str:
        """Return the layers that have a weight in common, if the units touch one of them."""
        touched = (name for name in (*units.producers, *units.consumers) if name in self.tied)
        return " and ".join(map(repr, self.tied.get(next(touched, ""), ())))

    def _group(self, layers: list[str]) -> list[Units]:
        """Return all units of a layer, the one in ``layers``, and of those that share channels with it.

        These layers are appended, even if it raises. Units are alike: of one list all touch the same layers,
        each as many channels. It is named by a layer that no other has, or by its first layer and a number.
        """
        walk = Walk(self.traced, layers)
        place_of = {n: walk.places.index(self.traced.outputs(n)) for n in self.modules if n in layers}
        alike: dict[tuple[tuple[int, int], ...], list[Channels]] = {}
        for channels in walk.units():
            kind = tuple(sorted((place, len(indices)) for place, indices in channels.items()))
            alike.setdefault(kind, []).append(channels)
        walk.joined |= len(alike) > 1
        lists = []
        for units in alike.values():
            made_by = [name for name, place in place_of.items() if place in units[0]]
            first_channel = min(min(own[place_of[made_by[0]]]) for own in units)
            lists.append((first_channel, made_by, units))
        several = Counter(name for _, made_by, _ in lists for name in made_by)
        names, numbers = list[str](), Counter[str]()
        for _, made_by, units in sorted(lists, key=itemgetter(0)):
            numbers[made_by[0]] += 1
            own = {name: name for name in made_by if several[name] == 1}
            own = own or {f"{made_by[0]}:{numbers[made_by[0]]}": made_by[0]}
            for name, layer in own.items():  # what was saved may know them by any of these
                self.known[name] = cache(partial(self._described, name, layer, made_by, walk, units))
            names.append(next(iter(own)))
        return [self.known[name]() for name in names]

    def _described(
        self, name: str, layer: str, made_by: Sequence[str], walk: Walk, channels: Sequence[Channels]
    ) -> Units:
        """Return units by one of their names, in the order of a layer's channels."""
        producers, consumers, loose, cuts = list[str](), list[str](), 0, list[Cut]()
        by = walk.places.index(self.traced.outputs(layer))
        size, channels = len(channels), sorted(channels, key=lambda own: min(own[by]))
        for place in sorted(channels[0]):
            node, function = walk.places[place]
            indices = [i for own in channels for i in sorted(own[place])]
            part, reads = self.names[node.module], not self.traced.is_out_channel_pruning_fn(function)
            module = self.modules.get(part)
            if isinstance(module, ROOTS) and not isinstance(module.weight, nn.Parameter):
                raise UserError(f"layer {layer!r}: the weight of {part!r} is computed: {REMEDY}")
            cuts.append(Cut(part, reads, indices, node.pruning_dim))
            if module is not None:
                (consumers if reads else producers).append(part)
            else:
                shape = self.parameters[part].shape
                loose += shape.numel() // shape[node.pruning_dim] * len(indices) // size
        made = {cut.name: cut.indices for cut in cuts if not cut.reads}
        step, width = len(made[layer]) // size, range(width_of(self.modules[layer]))
        grouped = made[layer] == [i for unit in range(size) for i in width[unit::size]]
        plain = grouped or made[layer] == [*width]  # the second: each unit's channels are side by side
        dense = [each for each in made_by if not is_depthwise(self.modules[each])] or made_by
        members = [self._member(each, made) for each in dense if walk.joined or not plain]
        return Units(
            name, size, False, tuple(producers), tuple(consumers), groups=step if grouped else 1,
            head_dim=1 if grouped else step, scored_by=self._axis(layer), loose=loose, coupled=walk.joined,
            members=tuple(members), cuts=tuple(cuts),
        )  # fmt: skip

    def _member(self, layer: str, made: Mapping[str, Sequence[int]]) -> Units:
        """Return all channels of a layer, and the batch-norm that they alone pass through."""
        alone = Units(layer, width_of(self.modules[layer]), False, (layer,), (), scored_by=self._axis(layer))
        pending = [self.traced.outputs(layer)[0]]
        for node in pending:  # which grow
            for following in node.outputs:
                name, norm = self.names.get(following.module, ""), following.module
                if isinstance(norm, BATCH_NORMS) and made.get(name) == made[layer]:
                    return replace(alone, producers=(layer, name))
                if not name and following not in pending:
                    pending.append(following)
        return alone

    def _axis(self, layer: str) -> tuple[tuple[str, int], ...]:
        """Return where a layer's weight has its output channels, if not on its first axis."""
        module = self.modules[layer]
        second = getattr(module, "transposed", False) and not is_depthwise(module)
        return ((layer, 1),) if second else ()
