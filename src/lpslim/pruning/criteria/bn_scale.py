"""Network slimming's criterion: the scale of a channel's batch-norm (Liu et al. 2017, arXiv:1708.06519).

Made for networks trained with an L1 penalty on those scales (``regularizer=bn_l1``), and compared over all
layers by one threshold (``score_norm=raw``).
"""

from collections.abc import Sequence

from torch import Tensor, nn

from lpslim.base.errors import UserError
from lpslim.pruning.units import BATCH_NORMS, Units, norm_name


def score(model: nn.Module, units: Sequence[Units], *_: object) -> list[Tensor]:
    """Return ``|gamma_j|`` per channel; UserError for units without a batch-norm that has a scale."""
    scales = []
    for unit in units:
        norm = model.get_submodule(norm_name(model, unit) or unit.layer)
        if not isinstance(norm, BATCH_NORMS) or not norm.affine:
            raise UserError(f"layer {unit.layer!r}: no batch-norm with a scale follows it")
        scales.append(norm.weight.detach().double().abs())
    return scales


check = score
