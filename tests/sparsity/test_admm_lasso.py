"""The ADMM where the answer is known: least squares, against Lasso and the conditions of a minimum.

The problems and the loop with an exact W-step are those of benchmarks/cap_off_lasso.py.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso
from torch import Tensor

from benchmarks import cap_off_lasso
from benchmarks.cap_off_lasso import Outcome, Problems, held, solve
from lpslim.sparsity.admm import ADMM
from lpslim.sparsity.penalties.lp import Lp

LAMB = 0.05
RHO = 15 * LAMB  # the released code's ratio
STARTS = ("least sq.", "random", "zero")


@pytest.fixture(scope="module")
def problems() -> Problems:
    return Problems.draw(seeds=20)


def run(problems: Problems, p: float, M: float | None, start: str, **options: float) -> Outcome:
    chosen = {"lamb": LAMB, "rho": RHO, **options}
    return solve(problems, Lp(p, M), start=problems.starts()[start], **chosen)


def violation(problems: Problems, Z: Tensor, p: float, M: float | None, lamb: float = LAMB) -> float:
    """Return by how much Z fails ``0 in gradient + lamb * d phi(Z)``, phi' = min(q |z|^(q-1), M)."""
    q = 1 / p
    worst = 0.0
    for z, gradient in zip(Z.flatten().tolist(), problems.gradient(Z).flatten().tolist(), strict=True):
        cap = math.inf if M is None else M
        if z == 0:
            at_zero = 1.0 if p == 1 else math.inf  # an infinite slope holds against any pull
            worst = max(worst, abs(gradient) - lamb * min(at_zero, cap))
        else:
            slope = min(q * abs(z) ** (q - 1), cap)
            worst = max(worst, abs(gradient + lamb * slope * math.copysign(1, z)))
    return worst


class TestL1:
    @pytest.mark.parametrize("lamb", [0.01, 0.1, 0.5])
    @pytest.mark.parametrize("start", STARTS)
    def test_reaches_lasso(self, problems, lamb, start):
        Z = run(problems, 1, None, start, lamb=lamb).Z
        assert 0 < (Z == 0).double().mean() < 1
        np.testing.assert_allclose(Z.numpy(), lasso(problems, lamb), rtol=0, atol=1e-6)

    def test_a_cap_below_one_is_a_smaller_lamb(self, problems):
        Z = run(problems, 1, 0.5, "zero", lamb=0.2).Z
        np.testing.assert_allclose(Z.numpy(), lasso(problems, 0.1), rtol=0, atol=1e-6)


def lasso(problems: Problems, lamb: float) -> np.ndarray:
    # scikit-learn minimises ||b - A w||^2 / (2 n) + alpha * |w|
    model = Lasso(alpha=lamb / problems.A.shape[1], fit_intercept=False, tol=1e-14, max_iter=100_000)
    pairs = zip(problems.A.numpy(), problems.b.numpy(), strict=True)
    return np.stack([model.fit(A, b).coef_.copy() for A, b in pairs])


@pytest.mark.parametrize(("p", "M"), [(1, None), (5, 1.0), (2, None)])
def test_gradient_steps_with_the_added_gradient_reach_the_exact_w_steps_limit(p, M):
    # the whole loop as training does it: backward, add_gradient, optimiser, and at times update
    problems = Problems.draw(seeds=2)
    start = problems.starts()["least sq."]
    W = start.clone().requires_grad_()
    admm = ADMM([W], Lp(p, M), lamb=LAMB, rho=RHO)
    optimizer = torch.optim.SGD([W], lr=0.25)  # 1 / (largest curvature + rho), about
    for _ in range(50):
        for _ in range(16):
            optimizer.zero_grad()
            ((problems.A @ W[..., None])[..., 0] - problems.b).square().sum().div(2).backward()
            admm.add_gradient()
            optimizer.step()
        residuals = admm.update()
    assert max(residuals.primal, residuals.dual) < 1e-6
    torch.testing.assert_close(admm.Z[0], solve(problems, Lp(p, M), lamb=LAMB, rho=RHO, start=start).Z,
                               rtol=0, atol=1e-6)  # fmt: skip


class TestCap:
    @pytest.mark.parametrize("start", STARTS)
    @pytest.mark.parametrize("p", [5, 2, 1.25])
    def test_settles_where_the_capped_penalty_is_stationary(self, problems, p, start):
        outcome = run(problems, p, 1.0, start)
        assert outcome.residual.max() < 1e-6
        assert violation(problems, outcome.Z, p, 1.0) < 1e-6
        assert 0 < (outcome.Z == 0).double().mean() < 1

    def test_both_sides_of_the_knee_are_in_the_comparison(self, problems):
        sizes = run(problems, 5, 1.0, "zero").Z.abs()
        knee = Lp(5, 1.0).knee
        assert ((sizes > 0) & (sizes < knee)).any()
        assert (sizes > knee).any()

    @pytest.mark.parametrize("M", [0.5, 2.0])
    def test_another_cap_is_another_penalty(self, problems, M):
        outcome = run(problems, 2, M, "zero")
        assert outcome.residual.max() < 1e-6
        assert violation(problems, outcome.Z, 2, M) < 1e-6
        assert violation(problems, outcome.Z, 2, 1.0) > 1e-3

    @pytest.mark.parametrize("p", [5, 2])
    def test_the_start_does_not_matter(self, problems, p):
        first, *others = (run(problems, p, 1.0, start).Z for start in STARTS)
        assert all((first - other).abs().max() < 1e-6 for other in others)

    def test_does_not_settle_when_rho_is_below_the_curvature(self, problems):
        # phi'' reaches -(1-q) M / knee, here 6: with rho / lamb far below, the linearised Z-steps circle
        penalty = Lp(5, 1.0)
        assert (1 - penalty.q) * penalty.M / penalty.knee == pytest.approx(5.98, abs=0.01)
        circling = run(problems, 5, 1.0, "least sq.", rho=0.5 * LAMB, outer=600).residual
        assert (circling > 1e-2).sum() > 10
        assert run(problems, 5, 1.0, "least sq.", rho=10 * LAMB, outer=600).residual.max() < 1e-6


def zeros_after_each_update(problems: Problems, penalty: Lp, start: Tensor, outer: int = 40) -> list[Tensor]:
    W = start.clone()
    admm = ADMM([W], penalty, lamb=LAMB, rho=RHO)
    system = problems.A.mT @ problems.A + RHO * torch.eye(W.shape[1], dtype=W.dtype)
    pulled = problems.A.mT @ problems.b[..., None]
    zeros = []
    for _ in range(outer):
        W.copy_(torch.linalg.solve(system, pulled + RHO * admm.V[0][..., None])[..., 0])
        admm.update()
        zeros.append(admm.Z[0] == 0)
    return zeros


class TestCapOff:
    @pytest.mark.parametrize("start", STARTS)
    @pytest.mark.parametrize("p", [5, 2])
    def test_zero_once_is_zero_for_ever(self, problems, p, start):
        zeros = zeros_after_each_update(problems, Lp(p, None), problems.starts()[start])
        assert zeros[-1].any()
        for before, after in pairwise(zeros):
            assert not (before & ~after).any()

    @pytest.mark.parametrize("p", [5, 2])
    def test_with_the_cap_zeros_come_back(self, problems, p):
        zeros = zeros_after_each_update(problems, Lp(p, 1.0), problems.starts()["random"])
        back = sum(int((before & ~after).sum()) for before, after in pairwise(zeros))
        assert back > 0

    @pytest.mark.parametrize("p", [5, 2])
    def test_from_zero_nothing_comes_back_but_with_the_cap_every_true_weight_does(self, problems, p):
        assert not run(problems, p, None, "zero").Z.any()
        capped = run(problems, p, 1.0, "zero").Z
        assert (capped[problems.truth != 0] != 0).all()

    @pytest.mark.parametrize("start", STARTS)
    @pytest.mark.parametrize("p", [5, 2])
    def test_settles_too_with_weights_held_at_zero_against_a_strong_pull(self, problems, p, start):
        outcome = run(problems, p, None, start)
        assert outcome.residual.max() < 1e-6
        # stationary all the same: what is not zero is balanced, and nothing can pull a zero away
        assert violation(problems, outcome.Z, p, None) < 1e-6
        pull = held(problems, outcome.Z, LAMB)
        assert (pull > 0).sum(dim=1).double().mean() > 2
        assert pull.max() > 2
        assert not held(problems, run(problems, p, 1.0, start).Z, LAMB).any()

    @pytest.mark.parametrize("p", [5, 2])
    def test_the_start_and_rho_decide_what_survives(self, problems, p):
        from_least_squares, from_random, _ = (run(problems, p, None, start).Z for start in STARTS)
        assert (from_least_squares - from_random).abs().max() > 0.3
        other_rho = run(problems, p, None, "random", rho=100 * LAMB).Z
        assert ((from_random != 0) != (other_rho != 0)).any()

    @pytest.mark.parametrize("p", [5, 2])
    def test_from_the_least_squares_weights_it_is_the_better_one_in_its_own_objective(self, problems, p):
        # the other side of the cap: it is a different penalty, and keeps more weights
        capped, free = (run(problems, p, M, "least sq.").Z for M in (1.0, None))
        assert (problems.objective(free, LAMB, p) < problems.objective(capped, LAMB, p)).all()
        assert (free != 0).sum() < (capped != 0).sum()

    def test_released_constants_leave_nothing_of_small_weights(self):
        # the first threshold, lamb q |z|^(q-1) / rho, exceeds every true weight of 0.015 to 0.075
        small = Problems.draw(scale=0.05)
        lamb = 0.005
        free, capped = (run(small, 5, M, "least sq.", lamb=lamb, rho=15 * lamb).Z for M in (None, 1.0))
        assert not free.any()
        assert (capped[small.truth != 0] != 0).all()


def test_the_script_prints_the_same_table_twice(monkeypatch, capsys):
    monkeypatch.setattr(cap_off_lasso, "SETTINGS", [(1.0, LAMB, 15)])
    printed = []
    for _ in range(2):
        cap_off_lasso.main(["--p", "5"])
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    first, header, *rows, last = printed[0].splitlines()
    assert first.startswith("p = 5")
    assert header.split()[:3] == ["scale", "rho/lamb", "start"]
    assert [name in line for name, line in zip(STARTS, rows, strict=True)] == [True] * 3
    assert "20 / 20" in rows[0]
    assert "0.00 / 5.00" in rows[2]  # lost: with the cap off all five true weights
    assert "apart by" in last
