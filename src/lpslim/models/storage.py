"""Networks on disk: ``architecture.json`` (what to build, which units are kept) and safetensors.

No pickle and no code: the JSON names a family of :mod:`lpslim.models.families` and the arguments it is
built with (or no family: then the reader brings the network), and for every pruned layer the units left.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import torch
from msgspec import Meta
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lpslim.base import files
from lpslim.base.errors import UserError
from lpslim.base.modules import example_input
from lpslim.models import family as families
from lpslim.models import weights
from lpslim.pruning import graph
from lpslim.pruning.units import Units

if TYPE_CHECKING:
    from lpslim.pruning.prune import Pruned

FORMAT = 1
DESCRIPTION, WEIGHTS = "architecture.json", "weights.safetensors"
LARGEST = 4_000_000  # bytes of a description; BERT-base with all of its neurons has 200,000
Scalar = bool | int | float | str | None


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
        family = families.get(self.family)
        if family.names is not None and self.name not in family.names:
            raise UserError(f"model.name={self.name}: must be one of {', '.join(family.names)}")
        return self.cut(family.build(self.name, **self.arguments))

    def units(self, model: nn.Module) -> list[Units]:
        """Return the prunable units of the dense network, on the CPU, as its family has them.

        Raises:
            UserError: see :func:`lpslim.pruning.graph.find_units`.
        """
        return families.get(self.family or "").units(model, example_input(self.input_shape))

    def cut(self, model: nn.Module) -> nn.Module:
        """Cut a dense network to width, in place, and return it.

        Raises:
            UserError: its layers are not those that were pruned.
        """
        if self.kept:
            cut = families.get(self.family).cut if self.family else graph.prune
            cut(model, example_input(self.input_shape).to(next(model.parameters()).device), self.kept)
        return model


def dense(family: str, name: str, data_shape: tuple[int, ...], num_classes: int) -> Architecture:
    """Return the architecture of an unpruned network for inputs of one shape.

    Raises:
        UserError: there is no such family, or no configuration of this name.
    """
    arguments = families.get(family).arguments(name, data_shape)
    return Architecture(family, name, data_shape, {"num_classes": num_classes, **arguments})


def write(folder: Path, model: nn.Module, architecture: Architecture) -> None:
    """Write a network and its description into ``folder``.

    A weight that several layers share is written for each.
    """
    files.write_json(folder / DESCRIPTION, {"format": FORMAT, **asdict(architecture)})
    with files.atomic_file(folder / WEIGHTS) as scratch:
        save_file(_separate(model.state_dict()), scratch)


def save(folder: str | Path, pruned: Pruned) -> None:
    """Write a pruned network of one's own: JSON of what is kept, and safetensors; :func:`load` reads it.

    A weight that several layers share is written for each; loaded, they share it again.

    Raises:
        FileExistsError: the folder holds a network already.
    """
    folder = Path(folder)
    if (folder / DESCRIPTION).exists():
        raise FileExistsError(f"{folder} holds a network already")
    write(
        folder,
        pruned.model,
        Architecture(None, type(pruned.model).__name__, pruned.input_shape, {}, pruned.kept),
    )


def _separate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors, each with memory of its own: safetensors refuses two names for one."""
    tensors: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, value in state.items():
        own = value.contiguous()
        tensors[name] = own.clone() if own.untyped_storage().data_ptr() in taken else own
        taken.add(own.untyped_storage().data_ptr())
    return tensors


class _Description(msgspec.Struct, forbid_unknown_fields=True):
    """Content of a description: see :class:`Architecture`. An input has 2^36 numbers at most."""

    format: Literal[1]
    family: str | None
    name: str
    input_shape: Annotated[tuple[Annotated[int, Meta(ge=1, le=4096)], ...], Meta(min_length=2, max_length=3)]
    arguments: dict[str, Annotated[int, Meta(ge=1, le=2**20)] | bool | float | str | dict[str, Scalar] | None]
    kept: dict[str, list[Annotated[int, Meta(ge=0, lt=2**31)]]]


def describe(folder: Path) -> Architecture:
    """Read a description alone, which may come from anybody.

    Raises:
        UserError: there is none, it is of another format, or a value is not what it must be.
    """
    path = folder / DESCRIPTION
    if not path.is_file():  # a pipe or a device would never end
        raise UserError(f"{folder} holds no {DESCRIPTION}: not a network saved by lpslim")
    with open(path, "rb") as file:
        content = file.read(LARGEST + 1)
    refused = f"{path}: not a network of format {FORMAT}"
    if len(content) > LARGEST:
        raise UserError(f"{refused}: larger than {LARGEST} bytes")
    try:
        fields = msgspec.structs.asdict(msgspec.json.decode(content, type=_Description))
    except (msgspec.MsgspecError, ValueError, RecursionError) as problem:
        raise UserError(f"{refused}: {problem}") from problem
    del fields["format"]
    return Architecture(**fields)


def load(folder: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Return the network saved in ``folder``, in evaluation mode, on the CPU.

    Needs neither the configuration nor the training code that made it. A network that lpslim cannot build
    by itself needs ``model``: the dense network, from the same code, with any weights; it is
    copied. The folder may come from anybody: no code is in it, and memory is taken only for weights
    that are there and fit the description.

    Raises:
        UserError: the folder holds no network, one of another format, or one that needs ``model``, or
            weights and description do not fit each other.
    """
    folder = Path(folder)
    described, path = describe(folder), folder / WEIGHTS
    shapes = _stored_shapes(path)
    try:
        if model is None:
            with _Weightless():
                network = described.build()
        else:
            network = described.cut(copy.deepcopy(model).cpu())
    except Exception as problem:  # networks and their tracing stumble over nonsense in many ways
        reason = str(problem) if isinstance(problem, UserError) else f"{type(problem).__name__}: {problem}"
        raise UserError(f"{folder}: cannot be built: {reason}") from problem
    own = network.state_dict()
    if faults := weights.misfits(shapes, own):
        raise UserError(f"{path}: does not fit {DESCRIPTION}: {'; '.join(faults)}")
    for name, value in load_file(path).items():
        if value.is_floating_point() != own[name].is_floating_point():
            raise UserError(f"{path}: {name} is of {value.dtype}, not of {own[name].dtype}")
        # a copy that no file backs; in place of the dictionary, which knows the modules' versions
        own[name] = value.to(own[name].dtype, copy=True).contiguous()
    network.load_state_dict(own, assign=model is None)  # a given network keeps its tensors and their sharing
    return network.eval()


def _stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes in a safetensors file by its header, which is checked against the file's size."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as problem:
        raise UserError(f"{path}: no readable safetensors ({problem})") from problem


class _Weightless(TorchFunctionMode):
    """Builds networks without memory for their weights, however large: names and shapes alone."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        dtype = given.get("dtype") or torch.float32
        if func in (torch.empty, torch.zeros, torch.ones) and dtype.is_floating_point:
            given["device"] = "meta"
        return func(*args, **given)
