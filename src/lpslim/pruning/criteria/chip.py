r"""CHIP: what a channel adds to its layer's nuclear norm (Sui et al. 2021, arXiv:2110.13981).

For one image, A (c, n) stacks the layer's maps, n = HW; the channel independence of row a_i is
``CI_i = ||A||_* - ||A without row i||_*``. In place of c + 1 singular value decompositions one
eigendecomposition is enough: without row i, ``A^T A`` is ``A^T A - a_i^T a_i``, whose determinant follows by
the matrix determinant lemma, and with ``sqrt(x) = 2/pi * integral of x / (x + u^2) du``

    CI_i = -1/pi * integral from 0 to infinity of log r_i(u) du,    r_i(u) = 1 - a_i (A^T A + u^2)^-1 a_i^T.

In log(u) the integrand is analytic in a strip of half-width pi/2 and decays like exp(-|log(u)|), so that the
trapezoidal rule with step h errs by about exp(-pi^2 / h).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lpslim.pruning.criteria import Batches, check_maps, mean_over_images
from lpslim.pruning.units import Units

STEP = 0.4  # exp(-pi^2 / STEP) = 2e-11
BELOW, ABOVE = -24.0, 8.0  # of log(u / ||A||_F)
CHUNK = 2**22  # entries of the largest temporary tensor
check = check_maps


def score(model: nn.Module, units: Sequence[Units], batches: Batches = (), *_: object) -> list[Tensor]:
    """Return the mean channel independence over images, of maps after the ReLU, which are not rounded."""
    return mean_over_images(model, units, batches, independence)


def independence(maps: Tensor) -> Tensor:
    """Return the channel independence (B, c), float64, of ``maps`` (B, c, H, W)."""
    rows = maps.double().flatten(2)
    scale = rows.square().sum(dim=(1, 2)).sqrt()  # an image without any response has none to share out
    rows = rows / torch.where(scale > 0, scale, 1.0)[:, None, None]
    nodes = torch.arange(BELOW, ABOVE + STEP / 2, STEP, dtype=rows.dtype, device=rows.device).exp()
    images = max(1, CHUNK // (rows.shape[1] * max(rows.shape[2], len(nodes))))
    return torch.cat([_nuclear_drops(part, nodes) for part in torch.split(rows, images)]) * scale[:, None]


def _nuclear_drops(rows: Tensor, nodes: Tensor) -> Tensor:
    """Return ||A||_* - ||A without row i||_* (B, c) of each A in ``rows`` (B, c, n), ||A||_F = 1."""
    weighted = -_remainders(rows, nodes.square()).log() @ (STEP * nodes)
    # the rule's terms beyond the last node, where -log r_i is |a_i|^2 / u^2: a geometric series
    beyond = rows.square().sum(dim=2) * STEP / (nodes[-1] * math.expm1(STEP))
    return (weighted + beyond) / math.pi


def _remainders(rows: Tensor, squares: Tensor) -> Tensor:
    """Return r_i(u) for each u^2 in ``squares`` (K,): (B, c, K), through the smaller Gram matrix."""
    wide = rows.shape[1] <= rows.shape[2]
    d, vectors = torch.linalg.eigh(rows @ rows.mT if wide else rows.mT @ rows)
    noise = max(rows.shape[1:]) * torch.finfo(rows.dtype).eps
    d = torch.where(d > noise, d, 0.0)[..., None]  # a dead channel's eigenvalue is zero, not 1e-17
    if wide:  # row i of the eigenvectors has length 1, which leaves no difference to cancel
        return vectors.square() @ (squares / (d + squares))
    taken = (rows @ vectors).square() @ (1 / (d + squares))
    return (1 - taken).clamp_min(noise)
