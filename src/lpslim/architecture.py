"""A network on disk: ``architecture.json`` (what to build, which units are kept) and safetensors.

No pickle and no code: the JSON names a family of :mod:`lpslim.models` and the arguments it is
built with (or no family: then the reader brings the network), and for every pruned layer which
units are left.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from lpslim import lookup, store, surgery
from lpslim.errors import UserError
from lpslim.splits import example
from lpslim.units import Units

FORMAT = 1
DESCRIPTION, WEIGHTS = "architecture.json", "weights.safetensors"


@dataclass(frozen=True)
class Architecture:
    """What it takes to build a network, but for its weights.

    ``family`` is None for a network that lpslim cannot build; ``name`` is then its class's.
    ``input_shape`` is (channels, height, width), or (3, longest) for tokens. ``kept`` maps a pruned layer
    to the original indices of the units it keeps.
    """

    family: str | None
    name: str
    input_shape: tuple[int, ...]
    arguments: dict[str, Any]
    kept: dict[str, list[int]] = field(default_factory=dict)

    def build(self) -> nn.Module:
        """Return the network with fresh weights, its pruned layers cut to width.

        Raises:
            UserError: lpslim cannot build it.
        """
        if self.family is None:
            raise UserError(f"{self.name} is not a network of lpslim: load(folder, model=<the dense one>)")
        return self.cut(lookup.find("models", self.family).build(self.name, **self.arguments))

    def units(self, model: nn.Module) -> list[Units]:
        """Return the prunable units of the dense network, as its family has them.

        Raises:
            UserError: see :func:`lpslim.surgery.find_units`.
        """
        family = lookup.find("models", self.family or "")
        if hasattr(family, "find_units"):  # it knows its units, and needs no tracing
            found: list[Units] = family.find_units(model)
            return found
        return surgery.find_units(model, example(self.input_shape), family.prunable(model))

    def cut(self, model: nn.Module) -> nn.Module:
        """Cut a dense network to width, in place, and return it.

        Raises:
            UserError: its layers are not those that were pruned.
        """
        family = lookup.find("models", self.family) if self.family else None
        if self.kept and family and hasattr(family, "find_units"):
            family.prune(model, self.kept)
        elif self.kept:
            surgery.prune(model, example(self.input_shape), self.kept)
        return model


def save(folder: Path, model: nn.Module, architecture: Architecture) -> None:
    """Write ``model`` and its description into ``folder``, which must exist."""
    described: dict[str, Any] = {"format": FORMAT, **asdict(architecture)}
    store.write_json(folder / DESCRIPTION, described)
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, folder / WEIGHTS)


def describe(folder: Path) -> Architecture:
    """Read the description alone.

    Raises:
        UserError: there is none, or it is of another format.
    """
    if not (folder / DESCRIPTION).is_file():
        raise UserError(f"{folder} holds no {DESCRIPTION}: not a network saved by lpslim")
    described = store.read_json(folder / DESCRIPTION)
    if described.pop("format", None) != FORMAT:
        raise UserError(f"{folder / DESCRIPTION}: the format is not {FORMAT}")
    described["input_shape"] = tuple(described["input_shape"])
    return Architecture(**described)


def load(folder: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Return the network saved in ``folder``, in evaluation mode, on the CPU.

    Needs neither the config nor the training code that made it. A network that lpslim cannot build
    by itself needs ``model``: the dense network, from the same code, with any weights; it is
    copied.

    Raises:
        UserError: the folder holds no network, one of another format, or one that needs ``model``.
        RuntimeError: weights and description do not fit each other.
    """
    folder = Path(folder)
    described = describe(folder)
    cut = described.build() if model is None else described.cut(copy.deepcopy(model).cpu())
    cut.load_state_dict(load_file(folder / WEIGHTS))
    return cut.eval()
