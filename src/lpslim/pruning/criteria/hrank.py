"""HRank: the mean rank of a channel's feature maps (Lin et al. 2020, arXiv:2002.10179).

The authors prune layer by layer with hand-set shares and a fine-tune after each; here all layers are scored
on the dense network, as in their later code.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lpslim.pruning.criteria import Batches, check_maps, mean_over_images
from lpslim.pruning.units import Units

check = check_maps


def score(model: nn.Module, units: Sequence[Units], batches: Batches = (), *_: object) -> list[Tensor]:
    """Return the mean rank over images of channel i's H x W map after the ReLU (full without a ReLU)."""
    return mean_over_images(model, units, batches, torch.linalg.matrix_rank)
