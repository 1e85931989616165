"""Base class of the network families, and the families by name.

A new family is one module of ``lpslim.models.families`` that ends with ``family = <Subclass>()``.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lpslim.base import registry
from lpslim.base.errors import UserError, listed
from lpslim.base.files import file_hash
from lpslim.models.weights import Published, load_into, read
from lpslim.pruning import check, graph
from lpslim.pruning.units import Prunable, Units

PUBLIC = "public"  # name of the weights that the literature starts from


class Family(ABC):
    """Networks that are built, pruned and given pretrained weights in one way.

    names: the networks of the family, or None where any name may be one. aliases: prefixes of names in public
    files of weights, and the networks' own.
    """

    names: tuple[str, ...] | None = None
    aliases: tuple[tuple[str, str], ...] = ()

    @abstractmethod
    def build(self, name: str, *_: Any, **arguments: Any) -> nn.Module:
        """Return a network with random weights; ``num_classes`` and :meth:`arguments` are its keywords."""

    def arguments(self, name: str, shape: Sequence[int]) -> dict[str, Any]:
        """Return what :meth:`build` needs beside ``num_classes`` for inputs of one shape."""
        return {"in_channels": shape[0]}

    def prunable(self, model: nn.Module) -> list[Prunable]:
        """Return the layers that may lose units; none listed (the default): those found by tracing."""
        return []

    def units(self, model: nn.Module, example: Tensor) -> list[Units]:
        """Return the prunable units of a dense network; errors as :meth:`graph.Graph.units`.

        Those found by tracing are checked: without them the network computes what it does with zeros there.
        """
        listed = self.prunable(model)
        return graph.Graph(model, example).units(listed) if listed else check.survey(model, example).units

    def coupled_units(self, model: nn.Module, example: Tensor) -> list[Units]:
        """Return the units found by tracing, those that several layers make together among them."""
        sensitive = {entry.layer for entry in self.prunable(model) if entry.sensitive}
        found = check.survey(model, example, coupled=True).units
        return [replace(units, sensitive=not sensitive.isdisjoint(units.producers)) for units in found]

    def cut(self, model: nn.Module, example: Tensor, kept: Mapping[str, Sequence[int]]) -> None:
        """Remove, in place, the units not in ``kept`` (layer -> original indices), as :func:`graph.prune`."""
        graph.prune(model, example, kept)

    def published(self, name: str) -> Mapping[str, Published]:
        """Return a network's pretrained weights that can be downloaded, by name; PUBLIC if there are such."""
        return {}

    def weights_identity(self, name: str, weights: str) -> str:
        """Return ``sha256:<hex>`` of a file, or the full name of published weights; UserError for neither."""
        entry = self._published(name, weights)
        return entry.name if entry else f"sha256:{file_hash(Path(weights))}"

    def _published(self, name: str, weights: str) -> Published | None:
        """Return published weights by name, None for a file; UserError for neither."""
        published = self.published(name)
        if weights not in published and not Path(weights).is_file():
            names = f", or one of {', '.join(published)}" if published else ""
            raise UserError(f"model.weights={weights}: must be a file that exists{names}")
        return published.get(weights)

    def load_weights(self, model: nn.Module, name: str, weights: str, folder: str | None = None) -> None:
        """Copy pretrained weights into a network; UserError if there are none such or they do not fit.

        folder: where the files of published weights lie; None: they are downloaded.
        """
        entry = self._published(name, weights)
        path = entry.fetch(folder) if entry else Path(weights)
        state, own = read(path), model.state_dict()
        for theirs, ours in self.aliases:
            for key in [key for key in state if key.startswith(theirs) and key not in own]:
                state[ours + key.removeprefix(theirs)] = state.pop(key)
        load_into(model, state, str(path))

    def check(self, model: nn.Module, data: Any) -> None:  # noqa: B027
        """Raise UserError for a data set that the network cannot read; by default it reads all."""

    def save_tokenizer(self, folder: Path, tokenizer: str) -> None:  # noqa: B027
        """Write the tokenizer of this name beside a saved network; by default there is none."""


def get(name: str) -> Family:
    """Return the family of this name; UserError, with a list of all, if there is none."""
    family: Family = registry.find("models.families", name).family
    return family


def published(family: str, name: str, weights: str | None) -> Published | None:
    """Return the published weights that ``weights`` names, None if it names none such.

    UserError, with the networks that have some, for PUBLIC where none are known.
    """
    entry = get(family).published(name).get(weights or "")
    if weights != PUBLIC or entry:
        return entry
    known = []
    for other in registry.choices("models.families"):
        names = [name for name in get(other).names or () if PUBLIC in get(other).published(name)]
        known += [f"{listed(names)} (model.family={other})"] if names else []
    raise UserError(f"model.weights={PUBLIC}: none known for {name}; there are for {'; '.join(known)}")
