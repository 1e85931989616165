"""Network slimming's criterion: the scale of a channel's batch-norm (Liu et al. 2017, arXiv:1708.06519).

Made for networks trained with an L1 penalty on those scales (``regularizer=bn_l1``), and compared over all
layers by one threshold (``score_norm=raw``).
"""

from collections.abc import Sequence

from torch import Tensor, nn

from lpslim.pruning.units import Units, norm_of


def check(model: nn.Module, units: Sequence[Units]) -> None:
    """Refuse units without a batch-norm that has a scale (UserError)."""
    score(model, units)


def score(model: nn.Module, units: Sequence[Units], *_: object) -> list[Tensor]:
    """Return ``|gamma_j|`` per channel."""
    return [norm_of(model, unit).weight.detach().double().abs() for unit in units]
