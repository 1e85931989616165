"""The penalties against their definitions: minimised numerically, differentiated, searched by brute force."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from lpslim.sparsity.penalties.lp import L0, Lp, build, soft_threshold

entries = st.floats(-3, 3, allow_subnormal=False)
exponents = st.sampled_from([1, 1.25, 2, 3, 5])
caps = st.sampled_from([None, 0.3, 1.0, 4.0])
strengths = st.floats(1e-3, 5)


def one(value):
    return torch.tensor([value], dtype=torch.float64)


def prox(penalty, x, z, strength):
    (new,) = penalty.proximal([one(x)], [one(z)], strength)
    return new.item()


def slope_by_hand(z, p, M):
    """Return min(q |z|^(q-1), M) by the formula, the zero of a concave penalty apart."""
    q = 1 / p
    slope = 1.0 if p == 1 else math.inf if z == 0 else q * abs(z) ** (q - 1)
    return slope if M is None else min(slope, M)


def numerical_minimiser(x, threshold):
    """Minimise threshold * |z| + (z - x)^2 / 2 without its closed form; an infinite price leaves z = 0."""
    if math.isinf(threshold):
        return 0.0
    bounds = (-abs(x) - 1, abs(x) + 1)
    found = minimize_scalar(lambda z: threshold * abs(z) + (z - x) ** 2 / 2, bounds=bounds, method="bounded",
                            options={"xatol": 1e-10})  # fmt: skip
    return float(found.x)


@given(st.lists(st.tuples(entries, st.floats(0, 4)), min_size=1, max_size=4))
def test_soft_threshold_minimises_its_objective_entry_by_entry(pairs):
    x, threshold = torch.tensor(pairs, dtype=torch.float64).T
    expected = [numerical_minimiser(*pair) for pair in pairs]
    assert soft_threshold(x, threshold).tolist() == pytest.approx(expected, abs=1e-6)


@given(entries, entries, st.floats(1e-3, 2), st.floats(0.1, 3), exponents, caps)
@example(x=1.0, z=0.0, lamb=0.1, rho=1.0, p=5, M=None)  # hypothesis may miss the exact zero
@example(x=1.0, z=0.0, lamb=0.1, rho=1.0, p=1, M=None)
@example(x=1.0, z=0.0, lamb=0.1, rho=1.0, p=5, M=1.0)
def test_proximal_minimises_the_linearised_objective(x, z, lamb, rho, p, M):
    new = prox(Lp(p, M), x, z, lamb / rho)
    assert new == pytest.approx(numerical_minimiser(x, lamb / rho * slope_by_hand(z, p, M)), abs=1e-6)


@given(entries, entries, strengths, st.floats(1, 10), exponents, caps)
def test_proximal_is_odd_shrinks_and_shrinks_more_the_stronger_it_is(x, z, strength, factor, p, M):
    penalty = Lp(p, M)
    new = prox(penalty, x, z, strength)
    assert prox(penalty, -x, z, strength) == -new
    assert prox(penalty, x, -z, strength) == new
    assert new * x >= 0
    assert abs(prox(penalty, x, z, strength * factor)) <= abs(new) <= abs(x)


@given(st.floats(1e-2, 3), st.booleans(), exponents, caps)
def test_weight_is_the_slope_of_the_root_up_to_the_cap(size, negative, p, M):
    step = 1e-6
    slope = ((size + step) ** (1 / p) - (size - step) ** (1 / p)) / (2 * step)
    weight = Lp(p, M).weight(one(-size if negative else size)).item()
    assert weight == pytest.approx(slope if M is None else min(slope, M), rel=1e-5)
    assert weight == pytest.approx(slope_by_hand(size, p, M), rel=1e-12)


def test_knees_by_hand():
    assert Lp(2, 1.0).knee == pytest.approx(0.25)  # 1 / (2 sqrt(z)) = 1
    assert Lp(2, 0.5).knee == pytest.approx(1.0)
    assert Lp(5, 1.0).knee == pytest.approx(0.2**1.25)  # the released setting: 0.1337
    assert [Lp(1, M).knee for M in (0.5, 1.0, 2.0)] == [math.inf, 0.0, 0.0]
    assert [Lp(p, None).knee for p in (1, 2, 5)] == [0.0, 0.0, 0.0]


@given(st.lists(entries, min_size=1, max_size=12), exponents, caps)
def test_capped_counts_the_entries_that_the_cap_limits(values, p, M):
    # beside the knee rounding decides which side an entry is on
    assume(all(abs(abs(v) - Lp(p, M).knee) > 1e-9 for v in values if v))
    limited = sum(M is not None and slope_by_hand(v, p, None) > M for v in values)
    assert Lp(p, M).capped(torch.tensor(values, dtype=torch.float64)).item() == limited
    assert L0(0.5).capped(torch.tensor(values)).item() == 0


def best_sparse(x, keep):
    """Return the nearest vector with at most ``keep`` entries, by trying every support."""
    candidates = []
    for support in itertools.combinations(range(len(x)), keep):
        z = np.zeros_like(x)
        z[list(support)] = x[list(support)]
        candidates.append(z)
    return min(candidates, key=lambda z: ((x - z) ** 2).sum())


@given(
    st.lists(entries, min_size=1, max_size=8, unique_by=abs),
    st.integers(0, 8).map(lambda eighths: Fraction(eighths, 8)),  # exact as a float
    st.lists(st.integers(0, 8), max_size=2),
    strengths,
)
def test_l0_is_the_projection_over_all_tensors_together(values, sparsity, cuts, strength):
    x = torch.tensor(values, dtype=torch.float64)
    nearest = best_sparse(x.numpy(), len(values) - math.floor(sparsity * len(values)))
    bounds = [0, *sorted(min(cut, len(values)) for cut in cuts), len(values)]
    parts = [x[a:b] for a, b in itertools.pairwise(bounds)]
    projected = list(L0(float(sparsity)).proximal(parts, [part + 1 for part in parts], strength))
    assert [part.shape for part in projected] == [part.shape for part in parts]
    assert torch.cat(projected).tolist() == nearest.tolist()


@pytest.mark.parametrize(("sparsity", "kept"), [(0.29, 71), (0.57, 43), (0.5, 50), (0.0, 100), (1.0, 0)])
def test_l0_of_equals_keeps_exactly_as_many_as_asked(sparsity, kept):
    (new,) = L0(sparsity).proximal([torch.ones(100)], [torch.ones(100)], 1.0)
    assert int((new != 0).sum()) == kept


@pytest.mark.parametrize(
    ("knobs", "expected", "name"),
    [
        ((5, 1.0, 0.9), Lp(5, 1.0), "Lp p=5, M=1"),
        ((2.5, None, 0.9), Lp(2.5, None), "Lp p=2.5, no cap"),
        ((1, 1.0, 0.9), Lp(1, 1.0), "L1"),  # a slope of 1 is not limited
        ((1, None, 0.9), Lp(1, None), "L1"),
        ((1, 0.5, 0.9), Lp(1, 0.5), "Lp p=1, M=0.5"),
        ((0, 1.0, 0.9), L0(0.9), "L0"),  # M has no meaning there, and ratio none elsewhere
    ],
)
def test_build_reads_the_knobs_and_penalties_have_short_names(knobs, expected, name):
    assert build(*knobs) == expected
    assert str(expected) == name
