"""The scale of a channel's batch-norm: network slimming (Liu et al. 2017, arXiv:1708.06519)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from lpslim.pruning.units import Units, norm_of


def check(model: nn.Module, units: Sequence[Units]) -> None:
    """Refuse units without a batch-norm.

    Raises:
        UserError: no batch-norm with a scale follows a layer.
    """
    for each in units:
        norm_of(model, each)


def score(model: nn.Module, units: Sequence[Units], batches: Iterable[Tensor] = ()) -> list[Tensor]:
    """Return ``|gamma_j|`` per channel, float64 (channels,) for each layer.

    Made for networks that were trained with an L1 penalty on those scales (``regularizer=bn_scale``),
    and compared over all layers by one threshold (``across=raw``).

    Raises:
        UserError: no batch-norm with a scale follows a layer.
    """
    return [norm_of(model, each).weight.detach().double().abs() for each in units]
