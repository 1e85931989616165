"""Prunable units: the output channels of a layer that go together, and the layers that they touch."""

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

from torch import Tensor, nn

from lpslim.base.errors import UserError

CONVOLUTIONS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d
)  # fmt: skip
ROOTS = (*CONVOLUTIONS, nn.Linear)  # layers whose outputs may be removed
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Cut(NamedTuple):
    """Channels removed from a layer or a loose parameter: of its outputs, or (``reads``) of its inputs."""

    name: str
    reads: bool
    indices: list[int]
    axis: int = 0  # of a loose parameter


@dataclass(frozen=True)
class Prunable:
    """A layer whose units may be removed, by name; a ``sensitive`` one has the floor ``adjust``."""

    layer: str
    sensitive: bool = False


@dataclass(frozen=True)
class Units:
    """The units of one layer.

    A unit is one channel, or one of each of ``groups`` groups where a grouped convolution is touched, or
    ``head_dim`` channels side by side: an attention head. ``producers`` lose output channels with each unit
    (the layer itself, its batch-norm, ...), ``consumers`` input channels. ``scored_by``: the weights that a
    unit is scored by, as (layer, axis of its channels); by default the layer's own. ``loose``: parameters
    outside of layers that go with one unit. ``cuts``: all that goes with all units, each unit's indices in a
    row, first unit first. ``coupled``: their channels are added to or concatenated with others. ``members``:
    where a unit is not scored as channels of the layer, those that it is scored by, with all channels.
    """

    layer: str
    size: int
    sensitive: bool
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    groups: int = 1
    head_dim: int = 1
    scored_by: tuple[tuple[str, int], ...] = ()
    loose: int = 0
    coupled: bool = False
    members: tuple[Self, ...] = field(default=(), repr=False)
    cuts: tuple[Cut, ...] = field(default=(), repr=False)

    def rows(self, cut: Cut) -> list[list[int]]:
        """Return the indices of each unit among those of a cut."""
        step = len(cut.indices) // self.size
        return [cut.indices[first : first + step] for first in range(0, len(cut.indices), step)]

    def without(self, gone: Iterable[int]) -> list[Cut]:
        """Return the cuts that remove these units."""
        chosen = list(gone)
        if not chosen:
            return []
        parts = [(cut, self.rows(cut)) for cut in self.cuts]
        return [cut._replace(indices=[i for unit in chosen for i in rows[unit]]) for cut, rows in parts]

    def check(self, chosen: Sequence[int]) -> None:
        """Refuse units to keep (UserError) that are none, not sorted, not distinct, or beyond the last."""
        if not chosen or list(chosen) != sorted(set(chosen)) or not 0 <= chosen[0] <= chosen[-1] < self.size:
            wanted = f"sorted, distinct, in 0..{self.size - 1}, not none"
            raise UserError(f"layer {self.layer!r}: kept units must be {wanted}")


def regularised_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights on which the penalty acts, by name: those of convolutions and linear layers.

    A weight that layers share is there once, under the name of the first.
    """
    weights: dict[Tensor, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, ROOTS):
            weights.setdefault(module.weight, f"{name}.weight")
    return {name: weight for weight, name in weights.items()}


def pooled(units: Sequence[Units], scores: Sequence[Tensor]) -> list[Tensor]:
    """Return scores per unit (size,), the sums of the scores per channel (groups * size * head_dim,).

    UserError if there are not as many, such as those of a transposed convolution's inputs.
    """
    sums = []
    for unit, s in zip(units, scores, strict=True):
        if s.numel() != (channels := unit.groups * unit.size * unit.head_dim):
            raise UserError(f"layer {unit.layer!r}: the criterion scores {s.numel()} channels of {channels}")
        sums.append(s.view(unit.groups, unit.size, unit.head_dim).sum(dim=(0, 2)))
    return sums


def norm_name(model: nn.Module, units: Units) -> str | None:
    """Return the name of the first batch-norm of the units' channels and no others, if there is one."""
    width = units.groups * units.size * units.head_dim
    for name in units.producers:
        module = model.get_submodule(name)
        if isinstance(module, BATCH_NORMS) and module.num_features == width:
            return name
    return None


def parameters_of(layers: Sequence[tuple[str, int]], own: Container[str]) -> list[tuple[str, int]]:
    """Return which parameters in ``own`` hold the channels of layers, as (name, axis of the channels).

    layers: (layer, axis of its weight); a bias has channels where that is the first.
    """
    weights = [(f"{layer}.weight", axis) for layer, axis in layers]
    biases = [(f"{layer}.bias", 0) for layer, axis in layers if axis == 0]
    return [part for part in weights + biases if part[0] in own]


def width_of(layer: Any) -> int:
    """Return the number of a layer's output channels."""
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)


def channel_axis(layer: Any) -> int:
    """Return the axis of a layer's input that holds its channels, counted from the last."""
    return -1 - len(layer.kernel_size) if isinstance(layer, CONVOLUTIONS) else -1


def is_depthwise(layer: nn.Module) -> bool:
    """Return whether a layer is a convolution of each channel by itself."""
    return isinstance(layer, CONVOLUTIONS) and 1 < layer.groups == layer.in_channels == layer.out_channels
