"""Operations that regroup channels, such as shuffles: the inputs that go with each of their outputs."""

from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

Pairs = list[tuple[int, int]]  # (input channel, output channel)


class Index(NamedTuple):
    """A channel as Torch-Pruning maps it, and its label."""

    idx: int
    root_idx: int


class Regrouping:
    """Map of channels along pairs, in Torch-Pruning's form; channels in no pair are lost."""

    def __init__(self, pairs: Pairs) -> None:
        self.targets: dict[int, list[int]] = {}
        for source, target in pairs:
            self.targets.setdefault(source, []).append(target)

    def __call__(self, indices: Sequence[Index]) -> list[Index]:
        """Return the channels on the other side, each with the label that it comes from."""
        return [Index(to, index.root_idx) for index in indices for to in self.targets.get(index.idx, ())]


def pairs(step: Any) -> Pairs:
    """Return the pairs of an operation that regroups channels, none of any other.

    step: the operation's step of the backward pass, or None. Padding and cropping count where they are of
    axis 1 alone, such as shortcuts'.
    """
    find = OPERATIONS.get(step.name()) if step else None
    return find(step, tuple(step._input_metadata[0].shape)) if find else []


def _halves(step: Any, shape: Sequence[int]) -> Pairs:
    width = shape[_signed(step._saved_dim)]
    return [(half * width + i, i) for half in range(2) for i in range(width)]


def _pixels_shuffled(step: Any, shape: Sequence[int]) -> Pairs:
    area = step._saved_upscale_factor**2
    return [(i, i // area) for i in range(area * shape[-3])]


def _pixels_gathered(step: Any, shape: Sequence[int]) -> Pairs:
    area = step._saved_downscale_factor**2
    return [(i // area, i) for i in range(shape[-3])]


def _shuffled(step: Any, shape: Sequence[int]) -> Pairs:
    """Return all pairs of channels that are at one place in their groups: a smaller shuffle keeps them."""
    groups = step._saved_groups
    width = shape[1] // groups
    each = product(range(width), range(groups), range(groups))
    return [(a * width + i, i * groups + b) for i, a, b in each]


def _padded(step: Any, shape: Sequence[int]) -> Pairs:
    pads = [_signed(size) for size in step._saved_pad]  # of the last axis first
    behind = 2 * len(shape) - 4  # entries for the axes behind the channels'
    before, after = pads[behind : behind + 2] or (0, 0)
    if any(pads[:behind]) or not (before or after):
        return []
    return [(i - before, i) for i in range(max(before, 0), shape[1] - max(after, 0))]


def _signed(value: int) -> int:
    """Return a number that PyTorch has saved as an unsigned one of 64 bits."""
    return value - 2**64 if value >= 2**63 else value


OPERATIONS = {
    "GluBackward0": _halves,
    "PixelShuffleBackward0": _pixels_shuffled,
    "PixelUnshuffleBackward0": _pixels_gathered,
    "ChannelShuffleBackward0": _shuffled,
    "ConstantPadNdBackward0": _padded,
}
