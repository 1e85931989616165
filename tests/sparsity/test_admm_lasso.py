"""The ADMM where the answer is known: least squares, against Lasso and the conditions of a minimum.

Twenty problems ``min_w ||A w - b||^2 / 2 + lamb * sum |w|^(1/p)`` in 15 weights, of which 5 are not zero.
"""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso

from lpslim.sparsity.admm import ADMM
from lpslim.sparsity.penalties.lp import Lp

LAMB = 0.05
RHO = 15 * LAMB  # the released code's ratio
EQUATIONS, WEIGHTS, TRUE, SEEDS = 40, 15, 5, 20
generator = torch.Generator().manual_seed(0)
A = torch.randn(SEEDS, EQUATIONS, WEIGHTS, generator=generator, dtype=torch.float64) / EQUATIONS**0.5
SIZES = 0.3 + 1.2 * torch.rand(SEEDS, WEIGHTS, generator=generator, dtype=torch.float64)
TRUTH = torch.where(torch.rand(SEEDS, WEIGHTS, generator=generator).argsort(dim=1) < TRUE, SIZES, 0.0)
TRUTH = TRUTH * (torch.randint(2, (SEEDS, WEIGHTS), generator=generator) * 2 - 1)
NOISE = 0.3 / EQUATIONS**0.5 * torch.randn(SEEDS, EQUATIONS, generator=generator, dtype=torch.float64)
B = (A @ TRUTH[..., None])[..., 0] + NOISE
STARTS = {
    "least squares": torch.linalg.lstsq(A, B[..., None]).solution[..., 0],
    "random": torch.randn(SEEDS, WEIGHTS, generator=generator, dtype=torch.float64),
    "zero": torch.zeros(SEEDS, WEIGHTS, dtype=torch.float64),
}
from_every_start = pytest.mark.parametrize("start", STARTS)


def gradient(W):
    return (A.mT @ ((A @ W[..., None])[..., 0] - B)[..., None])[..., 0]


def solve(p, M, start, *, lamb=LAMB, rho=RHO, outer=3000):
    """Yield Z and the larger residual of all problems together after each outer iteration, W-steps exact."""
    W = STARTS[start].clone()
    admm = ADMM([W], Lp(p, M), lamb=lamb, rho=rho)
    inverse = torch.linalg.inv(A.mT @ A + rho * torch.eye(WEIGHTS, dtype=W.dtype))
    for _ in range(outer):
        W.copy_((inverse @ (A.mT @ B[..., None] + rho * admm.V[0][..., None]))[..., 0])
        residuals = admm.update()
        yield admm.Z[0].clone(), (largest := max(residuals.primal, residuals.dual))
        if largest < 1e-8:
            return


def limit(*arguments, **options):
    *_, (Z, residual) = solve(*arguments, **options)
    assert residual < 1e-6
    return Z


def lasso(lamb):
    # scikit-learn minimises ||b - A w||^2 / (2 n) + alpha * |w|
    model = Lasso(alpha=lamb / EQUATIONS, fit_intercept=False, tol=1e-14, max_iter=100_000)
    return np.stack([model.fit(a, b).coef_.copy() for a, b in zip(A.numpy(), B.numpy(), strict=True)])


def violation(Z, p, M, lamb=LAMB):
    """Return by how much Z fails ``0 in gradient + lamb * d phi(Z)``, phi' = min(q |z|^(q-1), M)."""
    q, cap = 1 / p, math.inf if M is None else M
    slope = (q * Z.abs() ** (q - 1)).clamp(max=cap)
    balance = (gradient(Z) + lamb * slope * Z.sign()).abs()
    excess = (gradient(Z).abs() - lamb * cap).clamp(min=0)  # without a cap zero holds against any pull
    return torch.where(Z == 0, excess, balance).max().item()


@pytest.mark.parametrize("lamb", [0.01, 0.1, 0.5])
@from_every_start
def test_l1_reaches_lasso(lamb, start):
    Z = limit(1, None, start, lamb=lamb)
    assert 0 < (Z == 0).double().mean() < 1
    np.testing.assert_allclose(Z.numpy(), lasso(lamb), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("p", "M"), [(1, None), (5, 1.0), (2, None)])
def test_gradient_steps_with_the_added_gradient_reach_the_exact_w_steps_limit(p, M):
    # the whole loop as training does it: backward, add_gradient, optimiser, and at times update
    W = STARTS["least squares"].clone().requires_grad_()
    admm = ADMM([W], Lp(p, M), lamb=LAMB, rho=RHO)
    optimizer = torch.optim.SGD([W], lr=0.2)  # below 1 / (largest curvature + rho)
    for _ in range(100):
        for _ in range(16):
            optimizer.zero_grad()
            ((A @ W[..., None])[..., 0] - B).square().sum().div(2).backward()
            admm.add_gradient()
            optimizer.step()
        admm.update()
    torch.testing.assert_close(admm.Z[0], limit(p, M, "least squares"), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("p", "M"), [(5, 1.0), (2, 1.0), (1.25, 1.0), (2, 0.5), (2, 2.0)])
def test_with_a_cap_it_settles_where_the_capped_penalty_is_stationary_whatever_the_start(p, M):
    first, *others = (limit(p, M, start) for start in STARTS)
    assert violation(first, p, M) < 1e-6
    assert violation(first, p, 0.7) > 1e-3  # another cap is another penalty
    assert 0 < (first == 0).double().mean() < 1
    assert all((first - other).abs().max() < 1e-6 for other in others)
    if p == 5:  # both sides of the knee are in the comparison
        assert ((first != 0) & (first.abs() < Lp(p, M).knee)).any()
        assert (first.abs() > Lp(p, M).knee).any()


@from_every_start
@pytest.mark.parametrize("p", [5, 2])
def test_without_a_cap_zero_once_is_zero_for_ever_and_holds_against_any_pull(p, start):
    steps = [Z == 0 for Z, _ in solve(p, None, start)]
    assert steps[-1].any()
    assert not any((before & ~after).any() for before, after in pairwise(steps))
    Z = limit(p, None, start)
    assert violation(Z, p, None) < 1e-6
    pull = torch.where(Z == 0, gradient(Z).abs() / LAMB, 0.0)
    assert (pull > 1.001).sum(dim=1).double().mean() > 2  # more than the cap of 1 would allow
    assert start != "zero" or not Z.any()


@pytest.mark.parametrize("p", [5, 2])
def test_with_the_cap_zeros_come_back(p):
    steps = [Z == 0 for Z, _ in solve(p, 1.0, "random")]
    assert any((before & ~after).any() for before, after in pairwise(steps))
    assert (limit(p, 1.0, "zero")[TRUTH != 0] != 0).all()
