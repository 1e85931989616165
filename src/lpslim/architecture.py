"""A network on disk: ``architecture.json`` (what to build, which units are kept) and safetensors.

No pickle and no code: the JSON names a family of :mod:`lpslim.models`, the arguments it is
built with and, for every pruned layer, how many units it had and which are left.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lpslim import lookup, store, surgery
from lpslim.errors import UserError

FORMAT = 1
DESCRIPTION, WEIGHTS = "architecture.json", "weights.safetensors"


@dataclass(frozen=True)
class Architecture:
    """What it takes to build a network, but for its weights.

    ``kept`` maps a pruned layer to the original indices of the units it keeps.
    ``input_shape`` is (channels, height, width).
    """

    family: str
    name: str
    input_shape: tuple[int, int, int]
    arguments: dict[str, int]
    kept: dict[str, list[int]] = field(default_factory=dict)

    def build(self) -> nn.Module:
        """Return the network with fresh weights, its pruned layers cut to width."""
        model = lookup.find("models", self.family).build(self.name, **self.arguments)
        if self.kept:
            surgery.prune(model, torch.zeros(1, *self.input_shape), self.kept)
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


def load(folder: str | Path) -> nn.Module:
    """Return the network saved in ``folder``, in evaluation mode, on the CPU.

    Needs neither the config nor the training code that made it.

    Raises:
        UserError: the folder holds no network, or one of another format.
        RuntimeError: weights and description do not fit each other.
    """
    folder = Path(folder)
    model = describe(folder).build()
    model.load_state_dict(load_file(folder / WEIGHTS))
    return model.eval()
