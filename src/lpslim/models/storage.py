"""Networks on disk: ``architecture.json`` (what to build, which units are kept) and safetensors.

No pickle and no code: the JSON names a family and its arguments, or no family: the reader brings the network.
"""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import msgspec
import torch
from msgspec import Meta
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lpslim.base import files
from lpslim.base.errors import UserError
from lpslim.base.modules import Example, copied, example_input
from lpslim.models import family as families
from lpslim.models import weights
from lpslim.pruning import graph
from lpslim.pruning.units import Units

if TYPE_CHECKING:
    from lpslim.pruning.prune import Pruned

DESCRIPTION, WEIGHTS = "architecture.json", "weights.safetensors"
Kind = Literal["float", "int64", "int32", "uint8", "bool"]  # of an input; float in the network's precision
MOST_ENTRIES = 2**28  # of an example: 2,000 images of 224 x 224 have as many
LARGEST = 4_000_000  # bytes of a description; BERT-base with all of its neurons has 200,000
Sizes = tuple[Annotated[int, Meta(ge=1, le=4096)], ...]
Width = Annotated[int, Meta(ge=1, le=2**20)]


@dataclass(frozen=True)
class Architecture:
    """Description of a network without its weights.

    family: None for a network that lpslim cannot build; ``name`` is then its class's, and ``arguments`` tells
    its example. input_shape: (C, H, W), or (3, longest) for tokens. kept: pruned layer -> original indices of
    its units left. format: of files.
    """

    family: str | None
    name: str
    input_shape: Annotated[Sizes, Meta(min_length=1, max_length=8)]
    arguments: dict[str, Width | bool | float | str | dict[str, Any] | None]
    kept: dict[str, list[Annotated[int, Meta(ge=0, lt=2**31)]]] = field(default_factory=dict)
    format: Literal[1] = 1

    def build(self) -> nn.Module:
        """Return the network with fresh weights, cut to width; UserError if lpslim cannot build it."""
        if self.family is None:
            raise UserError(f"{self.name} is not a network of lpslim: load(folder, model=<the dense one>)")
        family = families.get(self.family)
        if family.names is not None and self.name not in family.names:
            raise UserError(f"model.name={self.name}: must be one of {', '.join(family.names)}")
        return self.cut(family.build(self.name, **self.arguments))

    def units(self, model: nn.Module) -> list[Units]:
        """Return the prunable units of the dense network, on the CPU, as its family has them."""
        return families.get(self.family or "").units(model, example_input(self.input_shape))

    def cut(self, model: nn.Module) -> nn.Module:
        """Cut a dense network to width, in place, and return it; UserError if it has not these layers."""
        if self.kept and self.family:
            example = example_input(self.input_shape).to(next(model.parameters()).device)
            families.get(self.family).cut(model, example, self.kept)
        elif self.kept:
            graph.prune(model, _blank(self.arguments["example"], model), self.kept)
        return model


def dense(family: str, name: str, data_shape: tuple[int, ...], num_classes: int) -> Architecture:
    """Return the architecture of an unpruned network for inputs of one shape; UserError if there is none."""
    own = families.get(family).arguments(name, data_shape)
    return Architecture(family, files.called(name), data_shape, {"num_classes": num_classes, **own})


def write(folder: Path, model: nn.Module, architecture: Architecture) -> None:
    """Write a network and its description into ``folder``; a weight that layers share is written for each."""
    state = {n: v.clone(memory_format=torch.contiguous_format) for n, v in model.state_dict().items()}
    with files.atomic_file(folder / WEIGHTS) as scratch:
        save_file(state, scratch)  # refuses tensors with memory that is shared or strided
    files.write_json(folder / DESCRIPTION, asdict(architecture))  # last: it says that the network is there


def save(folder: str | Path, pruned: "Pruned") -> None:
    """Write a pruned network of one's own, for :func:`load`; FileExistsError if the folder holds one.

    UserError, and nothing written, if its example holds anything but tensors, or if its channels cannot be
    traced on zeros, as :func:`load` does.
    """
    folder, name = Path(folder).expanduser(), type(pruned.model).__name__
    if (folder / DESCRIPTION).exists():
        raise FileExistsError(f"{folder} holds a network already")
    example: Any = pruned.example if isinstance(pruned.example, tuple | dict) else (pruned.example,)
    inputs = example if isinstance(example, dict) else {str(i): value for i, value in enumerate(example)}
    if strange := [key for key, value in inputs.items() if not isinstance(value, Tensor)]:
        raise UserError(f"{name} cannot be saved: input {strange[0]!r} of its example is not a tensor")
    kinds = {k: "float" if v.is_floating_point() else str(v.dtype).split(".")[1] for k, v in inputs.items()}
    if strange := [key for key, kind in kinds.items() if kind not in get_args(Kind)]:
        what = f"input {strange[0]!r} of its example has the type {kinds[strange[0]]}"
        raise UserError(f"{name} cannot be saved: {what}, not one of {', '.join(get_args(Kind))}")
    described = {key: (kinds[key], list(value.shape)) for key, value in inputs.items()}
    arguments: Any = {"example": described}
    try:
        traced = graph.Graph(pruned.model, _blank(described, pruned.model)).traced
        for layer in pruned.kept:
            traced.outputs(traced.maker(layer))
    except Exception as problem:  # whatever a network raises over zeros
        reason = f"on inputs of zeros, which load uses, its channels cannot be traced ({problem})"
        raise UserError(f"{name} cannot be saved: {reason}") from problem
    write(folder, pruned.model, Architecture(None, name, (1,), arguments, pruned.kept))


def _blank(described: Any, model: nn.Module) -> Example:
    """Return blank inputs as they are described, on the device and in the precision of a network."""
    like = next(p for p in model.parameters() if p.is_floating_point())
    inputs = msgspec.convert(described, dict[str, tuple[Kind, list[Annotated[int, Meta(ge=0)]]]])
    if (entries := sum(math.prod(shape) for _, shape in inputs.values())) > MOST_ENTRIES:
        raise UserError(f"its example has {entries} entries, more than {MOST_ENTRIES}")
    blank = {
        name: torch.zeros(shape, dtype=getattr(torch, kind)).to(like if kind == "float" else like.device)
        for name, (kind, shape) in inputs.items()
    }
    return blank if all(map(str.isidentifier, blank)) else tuple(blank.values())


def describe(folder: Path) -> Architecture:
    """Return the description in a folder, which may come from anybody; UserError if there is none valid."""
    path = folder / DESCRIPTION
    if not path.is_file():  # a pipe or a device would never end
        raise UserError(f"{folder} holds no {DESCRIPTION}: not a network saved by lpslim")
    with open(path, "rb") as file:
        content = file.read(LARGEST)  # a longer one is then no JSON
    try:
        unchecked = Architecture(**msgspec.json.decode(content))  # refuses unknown names, for a start
        return msgspec.convert(vars(unchecked), Architecture)
    except (TypeError, ValueError, RecursionError) as problem:
        raise UserError(f"{path}: not a network of format 1: {problem}") from problem


def load(folder: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Return the network saved in ``folder``, in evaluation mode, on the CPU; UserError if it holds none.

    The folder may come from anybody: no code is in it, and memory is taken only for weights that are there.
    model: the dense network with any weights, which is copied, where lpslim cannot build it by itself; the
    stored weights take its precision.
    """
    folder = Path(folder).expanduser()
    described, path = describe(folder), folder / WEIGHTS
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as problem:
        raise UserError(f"{path}: no readable safetensors ({problem})") from problem
    try:
        if model is None:
            with _Weightless():
                network = described.build()
        else:
            network = described.cut(copied(model).cpu())
    except Exception as problem:  # networks and their tracing stumble over nonsense in many ways
        reason = f"{type(problem).__name__}: {problem}"
        reason = str(problem).removeprefix("model.") if isinstance(problem, UserError) else reason
        raise UserError(f"{folder}: cannot be built: {reason}") from problem
    own = network.state_dict()
    if faults := weights.misfits(stored, own):
        if model is not None and any(n in own and len(v) < len(own[n]) for n, v in stored.items() if v.ndim):
            faults += "; if it was made from a network that was itself pruned, give that one as model"
        raise UserError(f"{path}: does not fit {DESCRIPTION}: {faults}")
    for name, value in stored.items():  # into the network's dictionary, which knows the modules' versions
        own[name] = value.to(own[name].dtype, copy=True).contiguous()  # a copy that no file backs
    network.load_state_dict(own, assign=model is None)  # a given network keeps its tensors and their sharing
    return network.eval()


class _Weightless(TorchFunctionMode):
    """Builds networks without memory for their weights, however large: names and shapes alone."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        dtype = given.get("dtype") or torch.float32
        if func in (torch.empty, torch.zeros, torch.ones) and dtype.is_floating_point:
            given["device"] = "meta"
        return func(*args, **given)
