"""The ADMM against the method with W, Z and U written out; its gradient, state, memory and refusals."""

import math

import numpy as np
import pytest
import safetensors.torch
import torch

from lpslim.sparsity.admm import ADMM, FORMS
from lpslim.sparsity.penalties.lp import L0, Lp

SHAPES = [(4, 3, 3, 3), (6, 5), (7,), (1, 1), ()]
LAMB, RHO = 0.02, 0.15
PENALTIES = [Lp(5, 1.0), Lp(2, None), Lp(2, 0.4), Lp(1, 1.0), Lp(1, None), Lp(1, 0.5), L0(0.6)]
both_forms = pytest.mark.parametrize("form", FORMS)


def draw(shapes=SHAPES, *, seed=0, dtype=torch.float64, scale=0.4):
    generator = torch.Generator().manual_seed(seed)
    return [(scale * torch.randn(s, generator=generator, dtype=torch.float64)).to(dtype) for s in shapes]


def parameters(**options):
    return [w.requires_grad_() for w in draw(**options)]


def build(weights, penalty=None, **options):
    return ADMM(weights, penalty or Lp(5, 1.0), **{"lamb": LAMB, "rho": RHO, **options})


@torch.no_grad()
def move(weights, seed, scale=0.2):
    """Stand in for a W-step: any movement of the weights will do."""
    steps = draw([tuple(w.shape) for w in weights], seed=seed, dtype=weights[0].dtype, scale=scale)
    for w, step in zip(weights, steps, strict=True):
        w += step


def gradients(admm, start=0.0):
    for w in admm.weights:
        w.grad = torch.full_like(w, start)
    admm.add_gradient()
    return [w.grad for w in admm.weights]


class Reference:
    """The method as it is written on paper, entry by entry in float64: W, Z and U are all kept."""

    def __init__(self, W, penalty, lamb=LAMB, rho=RHO):
        self.penalty, self.lamb, self.rho = penalty, lamb, rho
        self.Z = [np.array(w, dtype=np.float64) for w in W]
        self.U = [np.zeros_like(z) for z in self.Z]

    def step(self, W):
        before = [z.copy() for z in self.Z]
        limited = self.l0(W) if isinstance(self.penalty, L0) else self.lp(W)
        gap = moved = zeros = 0.0
        for w, z, u, old in zip(W, self.Z, self.U, before, strict=True):
            for i in np.ndindex(z.shape):
                u[i] += w[i] - z[i]
                gap += (w[i] - z[i]) ** 2
                moved += (z[i] - old[i]) ** 2
                zeros += z[i] == 0
        size = sum(z.size for z in self.Z)
        shares = {"sparsity": zeros / size, "capped": limited / size}
        return {"primal": math.sqrt(gap), "dual": self.rho * math.sqrt(moved), **shares}

    def lp(self, W):
        q, limited = 1 / self.penalty.p, 0
        for w, z, u in zip(W, self.Z, self.U, strict=True):
            for i in np.ndindex(z.shape):
                slope = 1.0 if q == 1 else math.inf if z[i] == 0 else q * abs(z[i]) ** (q - 1)
                if self.penalty.M is not None and slope > self.penalty.M:
                    slope, limited = self.penalty.M, limited + 1
                x = w[i] + u[i]
                z[i] = math.copysign(max(abs(x) - self.lamb * slope / self.rho, 0.0), x)
        return limited

    def l0(self, W):
        self.Z = x = [np.array(w + u) for w, u in zip(W, self.U, strict=True)]
        order = sorted((abs(t[i]), k, i) for k, t in enumerate(x) for i in np.ndindex(t.shape))
        for _, k, i in order[: int(self.penalty.sparsity * len(order))]:
            x[k][i] = 0.0
        return 0


def assert_follows(admm, reference, atol):
    pairs = [*zip(admm.Z, reference.Z, strict=True), *zip(admm.U, reference.U, strict=True)]
    for ours, expected in pairs:
        np.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("penalty", PENALTIES, ids=str)
def test_update_follows_the_reference(penalty):
    weights = parameters()
    weights[0] = weights[0].detach().to(memory_format=torch.channels_last).requires_grad_()
    weights[1] = weights[1].detach().t().contiguous().t().requires_grad_()  # the layout does not matter
    admm = build(weights, penalty)
    reference = Reference([w.detach().numpy() for w in weights], penalty)
    assert_follows(admm, reference, 0)  # Z = W and U = 0
    for outer in range(8):
        move(weights, seed=100 + outer)
        expected = reference.step([w.detach().numpy() for w in weights])
        residuals = admm.update()
        assert_follows(admm, reference, 1e-13)
        assert vars(residuals) == pytest.approx(expected, rel=1e-12)
        assert 0 < residuals.sparsity < 1  # both branches of the soft threshold
        assert penalty != Lp(5, 1.0) or 0 < residuals.capped < 1  # and of the cap


def test_float32_does_not_drift_from_float64():
    # U is kept as Z - V: rounding must not pile up over many outer iterations
    weights = parameters(dtype=torch.float32)
    admm, reference = build(weights), Reference([w.detach().numpy() for w in weights], Lp(5, 1.0))
    for outer in range(60):
        move(weights, seed=outer, scale=0.05)
        reference.step([w.detach().double().numpy() for w in weights])
        admm.update()
    assert_follows(admm, reference, 1e-5)


def augmented(form, weights, Z, U, rho):
    """The term that the W-step adds to the loss, for autograd to differentiate."""
    squares = [((w - z + u) ** 2).sum() for w, z, u in zip(weights, Z, U, strict=True)]
    return rho / 2 * sum(square if form == "squared" else square.sqrt() for square in squares)


@both_forms
def test_gradient_is_the_derivative_of_the_augmented_term_is_added_and_zero_at_the_goal(form):
    weights = parameters()
    admm = build(weights, form=form)
    for outer in range(3):  # until Z, U and V all differ
        move(weights, seed=outer)
        admm.update()
    move(weights, seed=9)
    expected = torch.autograd.grad(augmented(form, weights, admm.Z, admm.U, RHO), weights)
    for ours, want in zip(gradients(admm), expected, strict=True):
        torch.testing.assert_close(ours, want, rtol=1e-12, atol=1e-14)
    for ours, want in zip(gradients(admm, start=3.0), expected, strict=True):
        torch.testing.assert_close(ours, want + 3)
    weights = parameters()
    admm = build(weights, form=form)  # W = V in every tensor
    move(weights[:1], seed=1)  # but in the first
    lengths = [gradient.norm().item() for gradient in gradients(admm)]
    assert lengths[0] == pytest.approx(RHO / 2) if form == "norm" else lengths[0] > 1e-3
    assert max(lengths[1:]) < 1e-16  # rounding, but neither NaN nor half rho


def test_a_training_by_the_released_rules():
    """SGD on L + rho/2 * ||W - Z + U|| per tensor; then w, Z and U by the formulas of the released code."""
    p, M, lamb, rho = 5, 1.0, 1e-2, 1.5e-1
    weights, plain, goals = parameters(), parameters(), draw(seed=7)
    admm = ADMM(weights, Lp(p, M), lamb=lamb, rho=rho, form="norm")
    Z, U = [w.detach().clone() for w in plain], [torch.zeros_like(w) for w in plain]

    def loss(W):
        return sum(((w - goal) ** 2).sum() for w, goal in zip(W, goals, strict=True))

    optimizers = [torch.optim.SGD(W, 0.01, momentum=0.9, weight_decay=5e-4) for W in (weights, plain)]
    move(weights, seed=3), move(plain, seed=3)  # off Z, where their norm has no derivative
    for _ in range(5):
        for _ in range(4):
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss(weights).backward()
            admm.add_gradient()
            (loss(plain) + augmented("norm", plain, Z, U, rho)).backward()
            for optimizer in optimizers:
                optimizer.step()
        admm.update()
        for i, w in enumerate(plain):
            x, q = w.detach() + U[i], 1 / p
            slope = (q * Z[i].abs() ** (q - 1)).clamp(max=M)
            Z[i] = x.sign() * (x.abs() - lamb * slope / rho).clamp(min=0)
            U[i] = U[i] + w.detach() - Z[i]
    for ours, expected in zip([*weights, *admm.Z, *admm.U], [*plain, *Z, *U], strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


@both_forms
@pytest.mark.parametrize("penalty", [Lp(5, 1.0), L0(0.5)], ids=str)
def test_holds_two_tensors_per_weight_updated_where_they_are(penalty, form):
    weights = parameters()
    admm = build(weights, penalty, form=form)
    before = [t.data_ptr() for t in (*admm.Z, *admm.V)]
    same = [w.detach().clone() for w in weights]
    gradients(admm)
    admm.update()
    tensors = [t for value in vars(admm).values() if isinstance(value, list) for t in value]
    assert len(tensors) == 3 * len(weights)  # with the weights themselves
    assert [t.data_ptr() for t in (*admm.Z, *admm.V)] == before
    assert not any(t.requires_grad for t in (*admm.Z, *admm.V, *admm.U))
    assert all(torch.equal(w, old) and w.is_leaf for w, old in zip(weights, same, strict=True))


@pytest.mark.parametrize("penalty", [Lp(5, 1.0), Lp(2, None), L0(0.6)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_state_continues_bit_for_bit_through_a_file(penalty, dtype):
    weights = parameters(dtype=dtype)
    admm = build(weights, penalty)
    move(weights, seed=0)
    admm.update()
    assert list(admm.state_dict()) == [f"{name}.{i}" for name in "ZV" for i in range(len(SHAPES))]
    stored = safetensors.torch.save(admm.state_dict())
    resumed = build([w.detach().clone().requires_grad_() for w in weights], penalty)
    resumed.load_state_dict(safetensors.torch.load(stored))
    for outer in range(3):
        move(admm.weights, seed=outer), move(resumed.weights, seed=outer)
        for a, b in zip(gradients(admm), gradients(resumed), strict=True):
            assert torch.equal(a, b)
        assert resumed.update() == admm.update()
        for name, tensor in admm.state_dict().items():
            assert torch.equal(resumed.state_dict()[name], tensor), name


@pytest.mark.parametrize("odd", [{"Z.9": torch.zeros(1)}, {"V.1": torch.zeros(30)}], ids=["name", "shape"])
def test_a_state_that_does_not_fit_is_refused_whole(odd):
    weights = parameters()
    admm = build(weights)
    state = {**{name: t + 1 for name, t in admm.state_dict().items()}, **odd}
    with pytest.raises(ValueError, match="does not fit these weights"):
        admm.load_state_dict(state)
    assert all(torch.equal(z, w) for z, w in zip(admm.Z, weights, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"lamb": 0.0}, "lamb=0.0, rho=0.15"), ({"lamb": math.nan}, "lamb=nan"), ({"rho": -2.0}, "rho=-2.0"),
     ({"form": "cubed"}, "form='cubed': must be one of squared, norm"), ({"weights": []}, "weights")],
)  # fmt: skip
def test_bad_arguments_are_refused(options, message):
    weights = options.get("weights", parameters())
    with pytest.raises(ValueError, match=message):
        build(**{"weights": weights, **options})


def test_missing_gradients_are_refused_and_nothing_is_added():
    weights = parameters()
    admm = build(weights)
    move(weights, seed=1)
    weights[0].grad = torch.zeros_like(weights[0])
    with pytest.raises(ValueError, match="after backward"):
        admm.add_gradient()
    assert not weights[0].grad.any()
