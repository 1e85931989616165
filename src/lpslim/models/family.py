"""Base class of the network families, and the families by name.

To add a family, write one module of ``lpslim.models.families`` that ends with ``family = <Subclass>()``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lpslim.base import registry

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lpslim.pruning.units import Prunable, Units


class Family(ABC):
    """Networks that are built, pruned and given pretrained weights in one way.

    Attributes:
        names: the networks of the family; None where any name may be one.
        input: ``image`` for images (B, C, H, W), ``text`` for tokens (B, 3, L).
        aliases: prefixes of parameter names in public checkpoints, and the network's own in their place.
    """

    names: tuple[str, ...] | None = None
    input: str = "image"
    aliases: tuple[tuple[str, str], ...] = ()

    @abstractmethod
    def build(self, name: str, *_: Any, **arguments: Any) -> nn.Module:
        """Return a network with random weights, for inputs of :attr:`input`.

        arguments: ``num_classes`` and those of :meth:`arguments`, by name; a subclass declares its own.

        Raises:
            UserError: an argument that the network cannot be built with.
        """

    def arguments(self, name: str, shape: Sequence[int]) -> dict[str, Any]:
        """Return what :meth:`build` needs beside the number of classes, for inputs of ``shape``."""
        return {"in_channels": shape[0]}

    def prunable(self, model: nn.Module) -> list[Prunable]:
        """Return the layers that may lose units; here those that :func:`graph.discover` finds at 224x224."""
        import torch

        from lpslim.pruning import graph
        from lpslim.pruning.units import Prunable

        first = next(module for module in model.modules() if isinstance(module, torch.nn.Conv2d))
        example = torch.zeros(1, first.in_channels, 224, 224)  # which layers go together depends on no size
        return [Prunable(units.layer) for units in graph.discover(model, example)]

    def units(self, model: nn.Module, example: Tensor) -> list[Units]:
        """Return the prunable units of a dense network, with every layer that they touch.

        Raises:
            UserError: see :func:`lpslim.pruning.graph.find_units`.
        """
        from lpslim.pruning import graph

        return graph.find_units(model, example, self.prunable(model))

    def cut(self, model: nn.Module, example: Tensor, kept: Mapping[str, Sequence[int]]) -> None:
        """Remove, in place, the units that are not in ``kept`` (layer name -> original indices).

        Raises:
            UserError: the network has no such layer, or the indices are no choice of its units.
        """
        from lpslim.pruning import graph

        graph.prune(model, example, kept)

    def published(self, name: str) -> Mapping[str, Any]:
        """Return the pretrained weights that can be downloaded by name; an entry is torchvision's."""
        return {}

    def weights_identity(self, name: str, weights: str) -> str:
        """Return the content hash or the revision of pretrained weights.

        Raises:
            UserError: there are no such weights.
        """
        from lpslim.models import weights as pretrained

        return pretrained.identity(weights, self.published(name))

    def load_weights(self, model: nn.Module, name: str, weights: str) -> None:
        """Copy pretrained weights into a network.

        Raises:
            UserError: there are no such weights, or they do not fit.
        """
        from lpslim.models import weights as pretrained

        pretrained.initialise(model, weights, self.published(name), self.aliases)

    def check(self, model: nn.Module, data: Any) -> None:
        """Refuse a data set that the network cannot read (UserError); here none."""
        return

    def save_tokenizer(self, folder: Path, tokenizer: str) -> None:
        """Write the tokenizer named ``tokenizer`` beside a saved network; here there is none."""
        return


def get(name: str) -> Family:
    """Return the family of this name.

    Raises:
        UserError: there is none; the message lists those that exist.
    """
    family = registry.find("models.families", name).family
    assert isinstance(family, Family)
    return family
