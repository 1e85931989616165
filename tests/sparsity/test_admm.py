"""The ADMM steps against a slow reference with W, Z and U written out; its gradient, state and memory."""

from __future__ import annotations

import gc
import math
import re
import weakref
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from benchmarks import timing
from lpslim import blocks
from lpslim.base import registry
from lpslim.pruning.units import regularised_weights
from lpslim.sparsity.admm import ADMM, FORMS
from lpslim.sparsity.penalties import Penalty
from lpslim.sparsity.penalties.lp import L0, Lp

SHAPES = [(4, 3, 3, 3), (6, 5), (7,), (1, 1), ()]
LAMB, RHO = 0.02, 0.15
PENALTIES = [Lp(5, 1.0), Lp(2, None), Lp(2, 0.4), Lp(1, 1.0), Lp(1, None), Lp(1, 0.5), L0(0.6)]


def draw(
    shapes: Sequence[tuple[int, ...]] = SHAPES,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    scale: float = 0.4,
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [(scale * torch.randn(s, generator=generator, dtype=torch.float64)).to(dtype) for s in shapes]


def parameters(**options: object) -> list[Tensor]:
    return [w.requires_grad_() for w in draw(**options)]


def build(weights: list[Tensor], penalty: Penalty | None = None, **options: object) -> ADMM:
    return ADMM(weights, penalty or Lp(5, 1.0), **{"lamb": LAMB, "rho": RHO, **options})


def move(weights: Sequence[Tensor], seed: int, scale: float = 0.2) -> None:
    """Stand in for a W-step: any movement of the weights will do."""
    steps = draw([tuple(w.shape) for w in weights], seed=seed, dtype=weights[0].dtype, scale=scale)
    with torch.no_grad():
        for w, step in zip(weights, steps, strict=True):
            w += step


class Reference:
    """The method as it is written on paper, entry by entry in float64: W, Z and U are all kept."""

    def __init__(self, W: list[np.ndarray], penalty: Penalty) -> None:
        self.penalty = penalty
        self.Z = [np.array(w, dtype=np.float64) for w in W]
        self.U = [np.zeros_like(z) for z in self.Z]

    def step(self, W: list[np.ndarray]) -> dict[str, float]:
        before = [z.copy() for z in self.Z]
        limited = self._l0(W) if isinstance(self.penalty, L0) else self._lp(W, self.penalty)
        count = sum(z.size for z in self.Z)
        gap = moved = zeros = 0.0
        for w, z, u, old in zip(W, self.Z, self.U, before, strict=True):
            for i in np.ndindex(z.shape):
                u[i] += w[i] - z[i]
                gap += (w[i] - z[i]) ** 2
                moved += (z[i] - old[i]) ** 2
                zeros += z[i] == 0
        return {
            "primal": math.sqrt(gap),
            "dual": RHO * math.sqrt(moved),
            "sparsity": zeros / count,
            "capped": limited / count,
        }

    def _lp(self, W: list[np.ndarray], penalty: Lp) -> int:
        q, limited = 1 / penalty.p, 0
        for w, z, u in zip(W, self.Z, self.U, strict=True):
            for i in np.ndindex(z.shape):
                slope = 1.0 if q == 1 else math.inf if z[i] == 0 else q * abs(z[i]) ** (q - 1)
                if penalty.M is not None and slope > penalty.M:
                    slope, limited = penalty.M, limited + 1
                x = w[i] + u[i]
                z[i] = math.copysign(max(abs(x) - LAMB * slope / RHO, 0.0), x)
        return limited

    def _l0(self, W: list[np.ndarray]) -> int:
        x = [np.array(w + u) for w, u in zip(W, self.U, strict=True)]
        order = sorted((abs(t[i]), k, i) for k, t in enumerate(x) for i in np.ndindex(t.shape))
        self.Z = x
        for _, k, i in order[: int(self.penalty.sparsity * len(order))]:
            x[k][i] = 0.0
        return 0


class TestUpdate:
    @pytest.mark.parametrize("penalty", PENALTIES, ids=str)
    def test_follows_the_reference(self, penalty):
        weights = parameters()
        admm = build(weights, penalty)
        reference = Reference([w.detach().numpy() for w in weights], penalty)
        sparsities = []
        for outer in range(8):
            move(weights, seed=100 + outer)
            expected = reference.step([w.detach().numpy() for w in weights])
            residuals = admm.update()
            for got, want in [*zip(admm.Z, reference.Z, strict=True), *zip(admm.U, reference.U, strict=True)]:
                np.testing.assert_allclose(got.numpy(), want, rtol=0, atol=1e-13)
            assert vars(residuals) == pytest.approx(expected, rel=1e-12)
            sparsities.append(residuals.sparsity)
        # the comparison covers both branches of the soft threshold: zeros and others
        assert all(0 < share < 1 for share in sparsities)

    def test_capped_share_is_neither_none_nor_all_in_the_comparison(self):
        weights = parameters()
        admm = build(weights, Lp(5, 1.0))
        move(weights, seed=1)
        assert 0 < admm.update().capped < 1

    def test_starts_at_the_weights_with_no_dual(self):
        weights = parameters()
        admm = build(weights)
        assert all(torch.equal(z, w) for z, w in zip(admm.Z, weights, strict=True))
        assert all(not u.any() for u in admm.U)

    def test_float32_does_not_drift_from_float64(self):
        # U is kept as Z - V: rounding must not pile up over many outer iterations
        weights = parameters(dtype=torch.float32)
        admm = build(weights, Lp(5, 1.0))
        reference = Reference([w.detach().numpy() for w in weights], Lp(5, 1.0))
        for outer in range(60):
            move(weights, seed=outer, scale=0.05)
            reference.step([w.detach().double().numpy() for w in weights])
            admm.update()
        for got, want in [*zip(admm.Z, reference.Z, strict=True), *zip(admm.U, reference.U, strict=True)]:
            np.testing.assert_allclose(got.numpy(), want, rtol=0, atol=1e-5)

    def test_memory_layout_does_not_matter(self):
        plain, strided = parameters(), parameters()
        strided[0] = strided[0].detach().to(memory_format=torch.channels_last).requires_grad_()
        strided[1] = strided[1].detach().t().contiguous().t().requires_grad_()
        one, other = build(plain), build(strided)
        for outer in range(3):
            move(plain, seed=outer)
            move(strided, seed=outer)
            # sums run in another order
            assert vars(one.update()) == pytest.approx(vars(other.update()), rel=1e-12)
        assert all(torch.equal(a, b) for a, b in zip(one.Z, other.Z, strict=True))

    def test_rho_scales_the_dual_residual_and_the_threshold(self):
        weights = [torch.tensor([1.0, -0.3], dtype=torch.float64)]
        admm = ADMM(weights, Lp(1, None), lamb=0.5, rho=2.0)
        residuals = admm.update()  # soft(w, 0.25) = [0.75, -0.05]
        torch.testing.assert_close(admm.Z[0], torch.tensor([0.75, -0.05], dtype=torch.float64))
        torch.testing.assert_close(admm.U[0], torch.tensor([0.25, -0.25], dtype=torch.float64))
        assert residuals.primal == pytest.approx(0.25 * math.sqrt(2))
        assert residuals.dual == pytest.approx(2.0 * 0.25 * math.sqrt(2))


def written_out(form: str, weights: list[Tensor], admm: ADMM) -> Tensor:
    """The term that the W-step adds to the loss, for autograd to differentiate."""
    gaps = [w - z + u for w, z, u in zip(weights, admm.Z, admm.U, strict=True)]
    if form == "squared":
        return sum(admm.rho / 2 * (gap**2).sum() for gap in gaps)
    return sum(admm.rho / 2 * (gap**2).sum().sqrt() for gap in gaps)


class TestGradient:
    @pytest.mark.parametrize("form", ["squared", "norm"])
    def test_is_the_derivative_of_the_penalty(self, form):
        weights = parameters()
        admm = build(weights, form=form)
        for outer in range(3):  # until Z, U and V all differ
            move(weights, seed=outer)
            admm.update()
        move(weights, seed=9)
        expected = torch.autograd.grad(written_out(form, weights, admm), weights)
        for w in weights:
            w.grad = torch.zeros_like(w)
        admm.add_gradient()
        for w, want in zip(weights, expected, strict=True):
            torch.testing.assert_close(w.grad, want, rtol=1e-12, atol=1e-14)

    @pytest.mark.parametrize("form", ["squared", "norm"])
    def test_is_added_to_the_gradient_of_the_loss_in_place(self, form):
        weights = parameters()
        admm = build(weights, form=form)
        move(weights, seed=1)
        for w in weights:
            w.grad = torch.zeros_like(w)
        admm.add_gradient()
        alone = [w.grad.clone() for w in weights]
        for w in weights:
            w.grad.fill_(3.0)
        tensors = [w.grad for w in weights]
        admm.add_gradient()
        for w, tensor, extra in zip(weights, tensors, alone, strict=True):
            assert w.grad is tensor
            torch.testing.assert_close(w.grad, 3.0 + extra)

    def test_norm_has_length_half_rho_in_every_tensor(self):
        weights = parameters()
        admm = build(weights, form="norm")
        move(weights, seed=1)
        for w in weights:
            w.grad = torch.zeros_like(w)
        admm.add_gradient()
        assert [w.grad.norm().item() for w in weights] == pytest.approx([RHO / 2] * len(weights))

    @pytest.mark.parametrize("form", ["squared", "norm"])
    def test_is_zero_where_a_tensor_is_at_its_goal(self, form):
        weights = parameters()
        admm = build(weights, form=form)  # W = V in every tensor
        move(weights[:1], seed=1)  # but in the first
        for w in weights:
            w.grad = torch.zeros_like(w)
        admm.add_gradient()
        assert weights[0].grad.norm() > 1e-3
        for w in weights[1:]:
            assert w.grad.abs().max() < 1e-16  # rounding, but neither NaN nor half rho

    def test_the_two_forms_are_the_only_ones(self):
        assert set(FORMS) == {"squared", "norm"}


def storages(owner: object) -> dict[int, int]:
    """Return address -> bytes of every tensor storage that hangs on ``owner``."""
    found, waiting, seen = {}, [owner], set()
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, Tensor):
            found[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
        elif isinstance(thing, dict):
            waiting += thing.values()
        elif isinstance(thing, list | tuple):
            waiting += thing
        elif hasattr(thing, "__dict__") and not isinstance(thing, type) and not callable(thing):
            waiting += vars(thing).values()
    return found


class TestMemory:
    @pytest.mark.parametrize("penalty", [Lp(5, 1.0), Lp(2, None), L0(0.5)], ids=str)
    @pytest.mark.parametrize("form", ["squared", "norm"])
    def test_two_tensors_per_weight_and_nothing_else(self, penalty, form):
        weights = parameters()
        admm = build(weights, penalty, form=form)
        own = set()
        for outer in range(3):
            for w in weights:
                w.grad = torch.zeros_like(w)
            move(weights, seed=outer)
            admm.add_gradient()
            admm.update()
            of_weights = {w.untyped_storage().data_ptr() for w in weights}
            held = {at: size for at, size in storages(admm).items() if at not in of_weights}
            assert sum(held.values()) == 2 * sum(w.numel() * w.element_size() for w in weights)
            own.add(frozenset(held))
        assert len(own) == 1  # updated where they are

    @pytest.mark.parametrize(
        ("family", "name"), [("resnet_cifar", "resnet56"), ("vgg", "vgg16"), ("resnet_imagenet", "resnet50")]
    )
    def test_two_copies_of_a_networks_regularised_weights(self, family, name):
        model = lookup.find("models", family).build(name, num_classes=10)
        weights = list(regularised_weights(model).values())
        held = storages(build(weights))
        for w in weights:
            del held[w.untyped_storage().data_ptr()]
        assert sum(held.values()) == 2 * sum(w.numel() * w.element_size() for w in weights)

    def test_a_step_makes_no_tensor_that_lives_beside_z_and_v(self):
        weights = parameters(shapes=[(64, 32, 3, 3), (10, 64)], dtype=torch.float32)
        admm = build(weights)
        for w in weights:
            w.grad = torch.zeros_like(w)
        assert timing.peak_bytes(admm.add_gradient) == 0

    def test_the_update_needs_buffers_for_a_block_and_no_copy(self):
        block = blocks.PER_THREAD * torch.get_num_threads()
        weights = parameters(shapes=[(20 * block,), (4 * block,)], dtype=torch.float32)
        assert timing.peak_bytes(build(weights).update) < 10 * 4 * block

    @pytest.mark.parametrize("penalty", [Lp(5, 1.0), L0(0.5)], ids=str)
    def test_no_tensor_is_left_behind_by_a_step(self, penalty):
        shape = (7, 11, 13)  # no other tensor of the process has this size

        def alive() -> int:
            gc.collect()
            # by type: isinstance would wake the lazy objects of other libraries
            return sum(
                issubclass(type(t), Tensor) and t.numel() == math.prod(shape) for t in gc.get_objects()
            )

        weights = parameters(shapes=[shape])
        weights[0].grad = torch.zeros_like(weights[0])
        admm = build(weights, penalty)
        before = alive()
        assert before >= 2  # the count sees Z and V
        admm.add_gradient()
        admm.update()
        assert alive() == before

    def test_new_tensors_are_taken_one_by_one(self):
        # a second copy of all weights would double the peak of the update
        born: list[weakref.ref[Tensor]] = []
        most = 0

        class Watching:
            def proximal(self, x: list[Tensor], z: list[Tensor], strength: float) -> Iterator[Tensor]:
                nonlocal most
                for each in x:
                    new = each / 2
                    born.append(weakref.ref(new))
                    most = max(most, sum(r() is not None for r in born))
                    yield new
                    del new

            def capped(self, z: Tensor) -> Tensor:
                return torch.zeros((), dtype=torch.long)

        build(parameters(shapes=[(3, 3)] * 9), Watching()).update()
        assert len(born) == 9
        assert most <= 2


class TestAutograd:
    @pytest.mark.parametrize("form", ["squared", "norm"])
    def test_leaves_no_graph_and_does_not_touch_the_weights(self, form):
        weights = parameters()
        admm = build(weights, form=form)
        move(weights, seed=1)
        for w in weights:
            w.grad = torch.ones_like(w)
        before, versions = [w.detach().clone() for w in weights], [w._version for w in weights]
        admm.add_gradient()
        admm.update()
        for w, same, version in zip(weights, before, versions, strict=True):
            assert torch.equal(w, same)
            assert w._version == version
            assert w.requires_grad
            assert w.is_leaf
        for tensor in [*admm.Z, *admm.V, *admm.U, *(w.grad for w in weights)]:
            assert not tensor.requires_grad
            assert tensor.grad_fn is None

    def test_a_backward_before_the_update_still_runs_after_it(self):
        # the graph of the loss keeps the weights: a change in place would make backward fail
        weights = parameters()
        admm = build(weights)
        loss = sum((w**2).sum() for w in weights)
        admm.update()
        loss.backward()
        assert torch.equal(weights[0].grad, 2 * weights[0])


class TestState:
    @pytest.mark.parametrize("penalty", [Lp(5, 1.0), Lp(2, None), L0(0.6)], ids=str)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_continues_bit_for_bit_through_a_file(self, penalty, dtype):
        weights = parameters(dtype=dtype)
        admm = build(weights, penalty)
        for outer in range(3):
            move(weights, seed=outer)
            admm.update()
        stored = safetensors.torch.save(admm.state_dict())
        resumed_weights = [w.detach().clone().requires_grad_() for w in weights]
        resumed = build(resumed_weights, penalty)
        resumed.load_state_dict(safetensors.torch.load(stored))
        for outer in range(3, 6):
            for each, owner in ((weights, admm), (resumed_weights, resumed)):
                move(each, seed=outer)
                for w in each:
                    w.grad = torch.zeros_like(w)
                owner.add_gradient()
            assert resumed.update() == admm.update()
            for a, b in zip(weights, resumed_weights, strict=True):
                assert torch.equal(a.grad, b.grad)
            for name, tensor in admm.state_dict().items():
                assert torch.equal(resumed.state_dict()[name], tensor), name

    def test_has_a_name_for_each_tensor_and_copies_none(self):
        admm = build(parameters(shapes=[(2, 3), (4,)]))
        state = admm.state_dict()
        assert list(state) == ["Z.0", "Z.1", "V.0", "V.1"]
        assert state["V.1"] is admm.V[1]

    def test_loading_copies_so_that_the_source_stays_as_it_was(self):
        weights = parameters()
        source = {name: t.clone() for name, t in build(weights).state_dict().items()}
        kept = {name: t.clone() for name, t in source.items()}
        admm = build(weights)
        admm.load_state_dict(source)
        move(weights, seed=1)
        admm.update()
        assert all(torch.equal(source[name], kept[name]) for name in kept)

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda state: state.pop("Z.0"),
            lambda state: state.update({"Z.9": torch.zeros(1)}),
            lambda state: state.update({"V.1": state["V.1"].flatten()}),
            lambda state: state.clear(),
        ],
        ids=["missing", "extra", "shape", "empty"],
    )
    def test_a_state_that_does_not_fit_is_refused_whole(self, spoil: Callable[[dict[str, Tensor]], object]):
        weights = parameters()
        state = {name: t + 1 for name, t in build(weights).state_dict().items()}
        spoil(state)
        admm = build(weights)
        with pytest.raises(
            ValueError, match=r"^ADMM state does not fit these weights: other names or shapes$"
        ):
            admm.load_state_dict(state)
        assert all(torch.equal(z, w) for z, w in zip(admm.Z, weights, strict=True))


class TestRefusals:
    @pytest.mark.parametrize(
        ("lamb", "rho"),
        [(0, 1.0), (-0.1, 1.0), (1.0, 0), (1.0, -2), (math.nan, 1.0), (1.0, math.nan)],
    )
    def test_lamb_and_rho_must_be_positive(self, lamb, rho):
        with pytest.raises(ValueError, match=f"^lamb={lamb}, rho={rho}: both must be positive$"):
            build(parameters(), lamb=lamb, rho=rho)

    def test_an_unknown_form_names_the_known_ones(self):
        with pytest.raises(ValueError, match=r"^form='cubed': must be one of squared, norm$"):
            build(parameters(), form="cubed")

    def test_no_weights(self):
        with pytest.raises(ValueError, match=r"^weights: the list is empty$"):
            build([])

    @pytest.mark.parametrize("form", ["squared", "norm"])
    def test_missing_gradients_are_named_and_nothing_is_added(self, form):
        weights = parameters()
        admm = build(weights, form=form)
        move(weights, seed=1)
        for i in (0, 2, 4):
            weights[i].grad = torch.zeros_like(weights[i])
        message = re.escape("weights [1, 3] have no gradient: call after backward")
        with pytest.raises(ValueError, match=f"^{message}$"):
            admm.add_gradient()
        assert not weights[0].grad.any()
