"""The ADMM on groups: its Z-step minimised numerically, its scales, what it must leave as it is."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from lpslim.sparsity.channels import LEAST_SCALE, GroupADMM, Slice, shrinkage
from lpslim.sparsity.penalties.lp import Lp

entries = st.floats(-3, 3, allow_subnormal=False)
LAYERS = torch.tensor([0, 0, 0, 1, 1])  # three groups in the first layer, two in the second
SLICES = [
    Slice("a.weight", 0, torch.tensor([0, 1, 2]), torch.tensor([0, 1, 2])),
    Slice("a.bias", 0, torch.tensor([0, 1, 2]), torch.tensor([0, 1, 2])),
    Slice("b.weight", 1, torch.tensor([3, 0]), torch.tensor([3, 4])),  # columns 1 and 2 are nobody's
]


def made(penalty=None, seed=0, bias=1.0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a.weight": (3, 2, 2), "a.bias": (3,), "b.weight": (2, 4)}
    like = {"generator": generator, "dtype": torch.float64}
    parameters = {name: torch.randn(shape, **like) for name, shape in shapes.items()}
    parameters["a.bias"] *= bias
    return parameters, GroupADMM(parameters, SLICES, LAYERS, penalty.weight if penalty else None)


def scaled(admm, tensors, group):
    """Return the entries of one group in scaled variables, in a row."""
    rows = [
        t.movedim(part.axis, 0)[part.channels[part.group == group]].flatten() / scale[LAYERS[group]]
        for part, t, scale in zip(admm.slices, tensors, admm.scales, strict=True)
    ]
    return torch.cat(rows)


@given(st.lists(entries, min_size=1, max_size=4), st.floats(0, 4))
def test_shrinking_as_a_whole_is_the_proximal_map_of_the_norm(x, threshold):
    x = np.array(x)
    objective = lambda z: threshold * np.linalg.norm(z) + ((z - x) ** 2).sum() / 2  # noqa: E731
    starts = (x, x / 2, np.zeros_like(x))
    found = min((minimize(objective, start, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-14,
                 "maxiter": 4000}) for start in starts), key=lambda each: each.fun)  # fmt: skip
    size = torch.tensor(np.linalg.norm(x))
    z = x * shrinkage(size, torch.tensor(threshold)).item()
    assert objective(z) <= found.fun + 1e-9
    assert z == pytest.approx(found.x, abs=1e-3)


@given(st.integers(0, 50), st.sampled_from([Lp(1, 1.0), Lp(2, 3.0), Lp(5, 4.0), Lp(5, None), None]),
       st.lists(st.booleans(), min_size=5, max_size=5))  # fmt: skip
def test_a_z_step_is_the_proximal_map_in_scaled_variables_of_every_group(seed, penalty, stays):
    parameters, admm = made(penalty, seed)
    stays = torch.tensor(stays)
    with torch.no_grad():
        for w in parameters.values():
            w.add_(0.1)
    x = [w.clone() for w in admm.weights]  # U is zero
    sizes = admm.sizes(x)
    admm.update(lambda priority: stays)
    slope = penalty.weight(sizes * stays) if penalty else torch.zeros(5)
    for layer in (0, 1):
        gone = (layer == LAYERS) & ~stays
        t = (sizes / slope)[gone].max().item() if penalty and gone.any() else 0.0
        for group in (layer == LAYERS).nonzero().flatten().tolist():
            point, z = (scaled(admm, tensors, group) for tensors in (x, admm.Z))
            if penalty is None or not stays[group]:  # the least t that keeps zero what goes
                assert torch.equal(z, point * stays[group])
                assert penalty is None or sizes[group] <= t * slope[group] * (1 + 1e-12) or t == 0
                continue
            price = t * slope[group].item()
            for step in (*torch.eye(len(z), dtype=torch.float64) * 1e-4, *torch.eye(len(z)) * -1e-4, -z / 9):
                moved = z + step  # the objective is convex: no step helps
                there, here = (price * v.norm() + (v - point).square().sum() / 2 for v in (moved, z))
                assert here <= there + 1e-12
    assert all(torch.allclose(v, 2 * z - a) for v, z, a in zip(admm.V, admm.Z, x, strict=True))


@pytest.mark.parametrize("bias", [1.0, 0.0])
def test_every_layer_and_every_part_weigh_the_same_at_the_start(bias):
    parameters, admm = made(bias=bias)
    squares = admm.sizes(admm.weights).square()
    assert squares[3:].mean().item() == pytest.approx(1)
    assert squares[:3].mean().item() == pytest.approx(1 if bias else 0.5)
    weight, own = (admm.scales[i][0].item() for i in (0, 1))
    rms = parameters["a.bias"].square().mean().sqrt().item()
    assert own == pytest.approx(rms * 2**0.5 if bias else LEAST_SCALE * weight)


def test_where_nothing_is_to_go_nothing_moves():
    parameters, admm = made(Lp(5, 4.0))
    before = {name: w.clone() for name, w in parameters.items()}
    for _ in range(3):
        assert admm.update(lambda priority: torch.ones(5, dtype=torch.bool)) == 1
        admm.pull(0.5)
        admm.step()
    assert all(torch.equal(w, before[name]) for name, w in parameters.items())


def test_a_step_pulls_what_goes_to_zero_and_leaves_alone_what_belongs_to_no_group():
    parameters, admm = made()
    before = {name: w.clone() for name, w in parameters.items()}
    stays = torch.tensor([True, False, True, False, True])
    admm.update(lambda priority: stays)
    admm.pull(0.25, held=True)
    with admm.silenced():
        assert admm.gap() == 0
        assert not parameters["a.weight"][1].any()
    assert all(torch.equal(w, before[name]) for name, w in parameters.items())
    gap = admm.gap()
    admm.step()
    assert 0 < admm.gap() < gap
    left = {"a.weight": (1, 0.75, 1), "a.bias": (1, 0.75, 1), "b.weight": (1, 1, 1, 0.75)}
    for name, shares in left.items():
        factor = torch.tensor(shares, dtype=torch.float64)
        view = factor.view(-1, 1, 1) if parameters[name].ndim == 3 else factor
        assert torch.allclose(parameters[name], before[name] * view, atol=1e-15)
