"""A network on disk: ``architecture.json`` (what to build, which units are kept) and safetensors.

No pickle and no code: the JSON names a family of :mod:`lpslim.models` and the arguments it is
built with (or no family: then the reader brings the network), and for every pruned layer which
units are left.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lpslim import strict
from lpslim.base import files, registry
from lpslim.base.errors import UserError
from lpslim.data.splits import example
from lpslim.models import weights
from lpslim.pruning import graph
from lpslim.pruning.units import Units

FORMAT = 1
DESCRIPTION, WEIGHTS = "architecture.json", "weights.safetensors"
LARGEST = 4_000_000  # bytes of a description; BERT-base with all of its neurons has 200,000
Width = Annotated[int, Field(ge=1, le=2**20)]


class Arguments(BaseModel):
    """What the families of lpslim.models are built with."""

    model_config = ConfigDict(strict=True, extra="forbid")

    num_classes: Width | None = None
    in_channels: Width | None = None
    configuration: dict[str, bool | int | float | str | None] | None = None


class Described(BaseModel):
    """The content of a description: see :class:`Architecture`. An input has 2^24 numbers at most."""

    model_config = ConfigDict(strict=True, extra="forbid")

    format: Literal[1]
    family: str | None
    name: str
    input_shape: Annotated[list[Annotated[int, Field(ge=1, le=4096)]], Field(min_length=2, max_length=3)]
    arguments: Arguments
    kept: dict[str, list[Annotated[int, Field(ge=0, lt=2**31)]]]


SHAPE: TypeAdapter[Any] = TypeAdapter(Described)


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
        family = lookup.find("models", self.family)
        if family.NAMES is not None and self.name not in family.NAMES:
            raise UserError(f"{self.family}: {self.name!r} is not one of {', '.join(family.NAMES)}")
        return self.cut(family.build(self.name, **self.arguments))

    def units(self, model: nn.Module) -> list[Units]:
        """Return the prunable units of the dense network, as its family has them.

        Raises:
            UserError: see :func:`lpslim.pruning.graph.find_units`.
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
            device = next(model.parameters()).device
            surgery.prune(model, example(self.input_shape).to(device), self.kept)
        return model


def save(folder: Path, model: nn.Module, architecture: Architecture) -> None:
    """Write ``model`` and its description into ``folder``, which must exist.

    A weight that several layers have is written for each.
    """
    described: dict[str, Any] = {"format": FORMAT, **asdict(architecture)}
    store.write_json(folder / DESCRIPTION, described)
    with store.beside(folder / WEIGHTS) as scratch:
        save_file(_apart(model.state_dict()), scratch)


def _apart(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors, each with memory of its own: safetensors refuses two names for one."""
    tensors: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, value in state.items():
        own = value.contiguous()
        tensors[name] = own.clone() if own.untyped_storage().data_ptr() in taken else own
        taken.add(own.untyped_storage().data_ptr())
    return tensors


def describe(folder: Path) -> Architecture:
    """Read the description alone, which may come from anybody.

    Raises:
        UserError: there is none, it is of another format, or a value is not what it must be.
    """
    if not (folder / DESCRIPTION).is_file():
        raise UserError(f"{folder} holds no {DESCRIPTION}: not a network saved by lpslim")
    what = f"a network of format {FORMAT}"
    described = strict.read(folder / DESCRIPTION, SHAPE, what, LARGEST)
    del described["format"]
    described["input_shape"] = tuple(described["input_shape"])
    return Architecture(**described)


class _Weightless(TorchFunctionMode):
    """Networks built inside get no memory for weights, however large: names and shapes alone."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        kind = given.get("dtype") or torch.float32
        if func in (torch.empty, torch.zeros, torch.ones) and kind.is_floating_point:
            given["device"] = "meta"
        return func(*args, **given)


def _stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return what a file of safetensors holds by its header, which is checked against the file's size."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as problem:
        raise UserError(f"{path}: no readable safetensors ({problem})") from problem


def load(folder: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Return the network saved in ``folder``, in evaluation mode, on the CPU.

    Needs neither the config nor the training code that made it. A network that lpslim cannot build
    by itself needs ``model``: the dense network, from the same code, with any weights; it is
    copied. The folder may come from anybody: no code is in it, and memory is taken only for weights
    that are there and fit the description.

    Raises:
        UserError: the folder holds no network, one of another format, or one that needs ``model``, or
            weights and description do not fit each other.
    """
    folder = Path(folder)
    described, path = describe(folder), folder / WEIGHTS
    stored = _stored_shapes(path)
    try:
        if model is None:
            with _Weightless():
                cut = described.build()
        else:
            cut = described.cut(copy.deepcopy(model).cpu())
    except Exception as problem:  # networks and their tracing stumble over nonsense in many ways
        reason = str(problem) if isinstance(problem, UserError) else f"{type(problem).__name__}: {problem}"
        raise UserError(f"{folder}: cannot be built: {reason}") from problem
    own = cut.state_dict()
    if faults := checkpoints.misfits(stored, own):
        raise UserError(f"{path}: does not fit {DESCRIPTION}: {'; '.join(faults)}")
    tensors = load_file(path)
    if odd := [n for n, value in tensors.items() if value.is_floating_point() != own[n].is_floating_point()]:
        raise UserError(f"{path}: {odd[0]} is of {tensors[odd[0]].dtype}, not of {own[odd[0]].dtype}")
    for name, value in tensors.items():
        own[name] = _owned(value, own[name])  # in place of the dictionary: it knows the modules' versions
    cut.load_state_dict(own, assign=model is None)  # a given network keeps its tensors, and which are one
    return cut.eval()


def _owned(stored: Tensor, like: Tensor) -> Tensor:
    """Return a copy that no file backs, of the kind of number that the network has."""
    return stored.to(like.dtype, copy=True).contiguous()
