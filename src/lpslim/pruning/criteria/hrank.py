"""HRank: the mean rank of a channel's feature maps (Lin et al. 2020, arXiv:2002.10179)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lpslim.pruning.criteria import Batches
from lpslim.pruning.feature_maps import check as check
from lpslim.pruning.feature_maps import mean_over_images
from lpslim.pruning.units import Units


def score(model: nn.Module, units: Sequence[Units], batches: Batches = (), *_: object) -> list[Tensor]:
    """Return ``s_i = mean over images of rank(O_i)`` per channel.

    O_i: the H x W map of channel i after the ReLU, without which every map has full rank. The authors prune
    layer by layer with hand-set shares and a fine-tune after each; here all layers are scored on the dense
    network, as in their later code.

    Raises:
        UserError: there are no images, or a layer's output is no feature map.
    """
    return mean_over_images(model, units, batches, torch.linalg.matrix_rank)
