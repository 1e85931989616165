"""The penalties against their definitions: minimised numerically, differentiated, searched by brute force."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from torch import Tensor

from lpslim.sparsity.penalties.lp import L0, Lp, build, soft_threshold

entries = st.floats(-3, 3, allow_subnormal=False)
exponents = st.sampled_from([1, 1.25, 2, 3, 5])
caps = st.sampled_from([None, 0.3, 1.0, 4.0])
strengths = st.floats(1e-3, 5)


def one(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


def prox(penalty: Lp, x: float, z: float, strength: float) -> float:
    (new,) = penalty.proximal([one(x)], [one(z)], strength)
    return new.item()


def slope_by_hand(z: float, p: float, M: float | None) -> float:
    """Return min(q |z|^(q-1), M) by the formula, the zero of a concave penalty apart."""
    q = 1 / p
    slope = 1.0 if p == 1 else math.inf if z == 0 else q * abs(z) ** (q - 1)
    return slope if M is None else min(slope, M)


def numerical_minimiser(x: float, threshold: float) -> float:
    """Minimise threshold * |z| + (z - x)^2 / 2 without its closed form; an infinite price leaves z = 0."""
    if math.isinf(threshold):
        return 0.0
    found = minimize_scalar(
        lambda z: threshold * abs(z) + (z - x) ** 2 / 2,
        bounds=(-abs(x) - 1, abs(x) + 1),
        method="bounded",
        options={"xatol": 1e-10},
    )
    return float(found.x)


class TestSoftThreshold:
    @given(entries, st.floats(0, 4))
    def test_minimises_its_objective(self, x, threshold):
        assert soft_threshold(one(x), threshold).item() == pytest.approx(
            numerical_minimiser(x, threshold), abs=1e-6
        )

    @given(st.lists(st.tuples(entries, st.floats(0, 4)), min_size=1, max_size=8))
    def test_a_tensor_of_thresholds_acts_entry_by_entry(self, pairs):
        x, threshold = torch.tensor(pairs, dtype=torch.float64).T
        single = [soft_threshold(one(a), b).item() for a, b in pairs]
        assert soft_threshold(x, threshold).tolist() == single

    def test_zero_threshold_changes_nothing_and_an_infinite_one_leaves_zero(self):
        x = torch.tensor([-2.0, 0.0, 1e-30, 3.0])
        assert torch.equal(soft_threshold(x, 0.0), x)
        assert torch.equal(soft_threshold(x, math.inf), torch.zeros(4))
        assert torch.equal(soft_threshold(x, torch.full((4,), math.inf)), torch.zeros(4))

    def test_the_argument_stays_as_it_was(self):
        x, threshold = torch.randn(5), torch.rand(5)
        before = x.clone(), threshold.clone()
        soft_threshold(x, threshold)
        assert torch.equal(x, before[0])
        assert torch.equal(threshold, before[1])


class TestLpProximal:
    @given(entries, entries, st.floats(1e-3, 2), st.floats(0.1, 3), exponents, caps)
    @example(x=1.0, z=0.0, lamb=0.1, rho=1.0, p=5, M=None)  # hypothesis may miss the exact zero
    @example(x=1.0, z=0.0, lamb=0.1, rho=1.0, p=1, M=None)
    @example(x=1.0, z=0.0, lamb=0.1, rho=1.0, p=5, M=1.0)
    def test_minimises_the_linearised_objective(self, x, z, lamb, rho, p, M):
        strength = lamb / rho
        new = prox(Lp(p, M), x, z, strength)
        threshold = strength * slope_by_hand(z, p, M)
        assert new == pytest.approx(numerical_minimiser(x, threshold), abs=1e-6)

    @given(entries, entries, strengths, exponents, caps)
    def test_is_odd_and_even_in_the_last_z(self, x, z, strength, p, M):
        penalty = Lp(p, M)
        assert prox(penalty, -x, z, strength) == -prox(penalty, x, z, strength)
        assert prox(penalty, x, -z, strength) == prox(penalty, x, z, strength)

    @given(entries, entries, strengths, exponents, caps)
    def test_shrinks_towards_zero_and_never_past_it(self, x, z, strength, p, M):
        new = prox(Lp(p, M), x, z, strength)
        assert abs(new) <= abs(x)
        assert new * x >= 0

    @given(entries, entries, strengths, st.floats(1, 10), exponents, caps)
    def test_a_stronger_penalty_never_keeps_more(self, x, z, strength, factor, p, M):
        penalty = Lp(p, M)
        assert abs(prox(penalty, x, z, strength * factor)) <= abs(prox(penalty, x, z, strength))

    @given(entries, strengths, st.sampled_from([1.25, 2, 5]))
    def test_without_a_cap_zero_stays_zero(self, x, strength, p):
        assert prox(Lp(p, None), x, 0.0, strength) == 0

    @given(st.floats(0.01, 3), st.sampled_from([1.25, 2, 5]), st.floats(0.1, 4))
    def test_with_a_cap_zero_comes_back_beyond_strength_times_cap(self, excess, p, M):
        strength = 0.2
        assert prox(Lp(p, M), strength * M + excess, 0.0, strength) == pytest.approx(excess, abs=1e-12)
        assert prox(Lp(p, M), strength * M * 0.999, 0.0, strength) == 0

    def test_tensors_of_any_shape_are_taken_one_after_the_other(self):
        generator = torch.Generator().manual_seed(0)
        shapes = [(4, 3, 3, 3), (5,), ()]
        x, z = ([torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes] for _ in range(2))
        for a, b, new in zip(x, z, Lp(5, 1.0).proximal(x, z, 0.3), strict=True):
            assert new.shape == a.shape
            for i in np.ndindex(a.shape):
                assert new[i].item() == pytest.approx(prox(Lp(5, 1.0), a[i].item(), b[i].item(), 0.3))

    def test_lists_of_different_lengths_are_refused(self):
        with pytest.raises(ValueError, match="shorter"):
            list(Lp(5, 1.0).proximal([one(1), one(2)], [one(1)], 0.1))


class TestWeightAndValue:
    @given(st.floats(1e-3, 3), st.booleans(), exponents, caps)
    def test_weight_is_the_derivative_of_value(self, size, negative, p, M):
        penalty, step = Lp(p, M), 1e-6
        # at the knee the slope has a corner, over which a difference quotient would average
        assume(abs(size - penalty.knee) > 10 * step)
        z = -size if negative else size
        difference = penalty.value(one(z + step)) - penalty.value(one(z - step))
        slope = difference.item() / (2 * step) * (-1 if negative else 1)
        # the quotient's own error, step^2/6 * value''', is largest at the smallest z without a cap
        assert penalty.weight(one(z)).item() == pytest.approx(slope, rel=1e-5)

    @given(entries, exponents, caps)
    @example(z=0.0, p=5, M=None)
    @example(z=0.0, p=1, M=None)
    @example(z=0.0, p=1, M=0.3)
    def test_weight_is_the_formula(self, z, p, M):
        assert Lp(p, M).weight(one(z)).item() == pytest.approx(slope_by_hand(z, p, M), rel=1e-12)

    @given(st.floats(0, 3), st.floats(0, 3), st.floats(0, 1), exponents, caps)
    def test_value_is_concave_in_the_size(self, a, b, share, p, M):
        penalty = Lp(p, M)
        between = penalty.value(one(share * a + (1 - share) * b)).item()
        chord = share * penalty.value(one(a)).item() + (1 - share) * penalty.value(one(b)).item()
        assert between >= chord - 1e-12

    @given(st.sampled_from([1.25, 2, 3, 5]), st.floats(0.05, 5))
    def test_with_a_cap_the_slope_at_zero_is_the_cap(self, p, M):
        penalty = Lp(p, M)
        step = penalty.knee / 2
        assert penalty.value(one(0.0)).item() == 0
        assert penalty.value(one(step)).item() / step == pytest.approx(M, rel=1e-12)
        assert penalty.weight(one(0.0)).item() == M

    @given(st.sampled_from([1.25, 2, 3, 5]), st.floats(0.05, 5))
    def test_value_has_no_step_at_the_knee(self, p, M):
        penalty = Lp(p, M)
        below, above = (penalty.value(one(penalty.knee * side)).item() for side in (1 - 1e-9, 1 + 1e-9))
        assert below == pytest.approx(above, rel=1e-7)

    @given(entries, exponents)
    def test_without_a_cap_value_is_the_root(self, z, p):
        assert Lp(p, None).value(one(z)).item() == pytest.approx(abs(z) ** (1 / p), rel=1e-12)

    def test_value_sums_over_the_entries(self):
        z = torch.tensor([[0.01, -0.3], [0.0, 2.0]], dtype=torch.float64)
        penalty = Lp(5, 1.0)
        total = penalty.value(z)
        assert total.shape == ()
        assert total.item() == pytest.approx(sum(penalty.value(one(e)).item() for e in z.flatten().tolist()))


class TestKnee:
    @given(st.sampled_from([1.25, 2, 3, 5]), st.floats(0.05, 5))
    def test_there_the_bare_slope_is_the_cap(self, p, M):
        knee = Lp(p, M).knee
        assert slope_by_hand(knee, p, None) == pytest.approx(M, rel=1e-12)

    def test_closed_forms(self):
        assert Lp(2, 1.0).knee == pytest.approx(0.25)  # 1 / (2 sqrt(z)) = 1
        assert Lp(2, 0.5).knee == pytest.approx(1.0)
        assert Lp(5, 1.0).knee == pytest.approx(0.2**1.25)  # the released setting: 0.1337

    def test_l1_is_capped_everywhere_or_nowhere(self):
        assert [Lp(1, M).knee for M in (0.5, 1.0, 2.0)] == [math.inf, 0.0, 0.0]

    def test_no_cap_no_knee(self):
        assert [Lp(p, None).knee for p in (1, 2, 5)] == [0.0, 0.0, 0.0]


class TestCapped:
    @given(st.lists(entries, min_size=1, max_size=12), exponents, caps)
    def test_counts_the_entries_that_the_cap_limits(self, values, p, M):
        # beside the knee rounding decides which side an entry is on
        assume(all(abs(abs(v) - Lp(p, M).knee) > 1e-9 for v in values if v))
        limited = sum(M is not None and slope_by_hand(v, p, None) > M for v in values)
        assert Lp(p, M).capped(torch.tensor(values, dtype=torch.float64)).item() == limited

    def test_is_an_integer_scalar_for_every_penalty(self):
        for penalty in (Lp(5, 1.0), Lp(5, None), L0(0.5)):
            count = penalty.capped(torch.zeros(3, 2))
            assert count.shape == ()
            assert count.dtype == torch.long

    def test_l0_has_no_cap(self):
        assert L0(0.5).capped(torch.zeros(7)).item() == 0


def best_sparse(x: np.ndarray, keep: int) -> np.ndarray:
    """Return the nearest vector with at most ``keep`` entries, by trying every support."""
    candidates = []
    for support in itertools.combinations(range(len(x)), keep):
        z = np.zeros_like(x)
        z[list(support)] = x[list(support)]
        candidates.append(z)
    return min(candidates, key=lambda z: ((x - z) ** 2).sum())


class TestL0:
    @given(
        st.lists(entries, min_size=1, max_size=8, unique_by=abs),
        st.integers(0, 8).map(lambda eighths: Fraction(eighths, 8)),  # exact as a float
        st.lists(st.integers(0, 8), max_size=2),
    )
    def test_is_the_projection_over_all_tensors_together(self, values, sparsity, cuts):
        x = torch.tensor(values, dtype=torch.float64)
        nearest = best_sparse(x.numpy(), len(values) - math.floor(sparsity * len(values)))
        bounds = [0, *sorted(min(c, len(values)) for c in cuts), len(values)]
        parts = [x[a:b] for a, b in itertools.pairwise(bounds)]
        projected = list(L0(float(sparsity)).proximal(parts, [torch.zeros_like(p) for p in parts], 0.1))
        assert [p.shape for p in projected] == [p.shape for p in parts]
        assert torch.cat(projected).tolist() == nearest.tolist()

    def test_takes_more_from_the_tensor_with_the_smaller_entries(self):
        small, large = torch.tensor([[0.1, -0.2], [0.3, -0.4]]), torch.tensor([5.0, -6.0, 7.0, 8.0])
        z = [torch.zeros(2, 2), torch.zeros(4)]
        new_small, new_large = L0(0.5).proximal([small, large], z, 0.1)
        assert torch.equal(new_small, torch.zeros(2, 2))
        assert torch.equal(new_large, large)

    @given(st.lists(st.integers(-2, 2), min_size=1, max_size=12), st.integers(0, 8))
    def test_ties_never_keep_too_many_nor_a_smaller_one_before_a_larger(self, values, eighths):
        x = torch.tensor(values, dtype=torch.float64)
        (new,) = L0(eighths / 8).proximal([x], [x], 0.1)
        assert int((new != 0).sum()) <= len(values) - math.floor(Fraction(eighths, 8) * len(values))
        kept, dropped = x[new != 0].abs(), x[(new == 0) & (x != 0)].abs()
        assert not len(kept) or not len(dropped) or kept.min() >= dropped.max()
        assert torch.equal(new[new != 0], x[new != 0])

    @pytest.mark.parametrize(("sparsity", "kept"), [(0.29, 71), (0.57, 43), (0.5, 50)])
    def test_of_equals_exactly_as_many_stay_as_asked(self, sparsity, kept):
        x = torch.ones(100)
        (new,) = L0(sparsity).proximal([x], [x], 1.0)
        assert int((new != 0).sum()) == kept

    @given(st.lists(entries, min_size=1, max_size=8), st.integers(0, 8), strengths)
    def test_neither_the_last_z_nor_the_strength_matters(self, values, eighths, strength):
        x = torch.tensor(values, dtype=torch.float64)
        (one_way,) = L0(eighths / 8).proximal([x], [torch.zeros_like(x)], 1.0)
        (other,) = L0(eighths / 8).proximal([x], [x + 1], strength)
        assert torch.equal(one_way, other)

    @given(st.lists(entries, min_size=1, max_size=8), st.integers(0, 8))
    def test_is_odd_and_idempotent(self, values, eighths):
        x = torch.tensor(values, dtype=torch.float64)
        (new,) = L0(eighths / 8).proximal([x], [x], 1.0)
        (mirrored,) = L0(eighths / 8).proximal([-x], [x], 1.0)
        (again,) = L0(eighths / 8).proximal([new], [x], 1.0)
        assert torch.equal(mirrored, -new)
        assert torch.equal(again, new)

    def test_the_two_ends(self):
        x = torch.tensor([3.0, -1.0, 2.0])
        assert torch.equal(next(L0(0.0).proximal([x], [x], 1.0)), x)
        assert torch.equal(next(L0(1.0).proximal([x], [x], 1.0)), torch.zeros(3))


@pytest.mark.parametrize(
    ("knobs", "expected"),
    [
        ((5, 1.0, 0.9), Lp(5, 1.0)),
        ((5, None, 0.9), Lp(5, None)),
        ((1, 1.0, 0.9), Lp(1, 1.0)),
        ((0, 1.0, 0.9), L0(0.9)),  # M has no meaning there, and ratio none elsewhere
        ((0, None, 0.25), L0(0.25)),
    ],
)
def test_build_reads_the_knobs(knobs, expected):
    assert build(*knobs) == expected
