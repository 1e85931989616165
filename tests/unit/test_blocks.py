"""The update in blocks beside the same steps on whole tensors: Z and V to the bit, sums to 1e-12."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lpslim import blocks
from lpslim.admm import ADMM
from lpslim.penalties import Linearised, Penalty
from lpslim.penalties.lp import L0, Lp

LAMB, RHO = 1e-4, 1.5e-3
SIZES = [
    (2 * blocks.PER_THREAD + 1000 * blocks.ROW,),
    (67, 33, 3, 3),
    (64, 64, 3, 3),
    (16, 3, 3, 3),
    (10,),
    (),
]
LP = [Lp(5, 1.0), Lp(5, None), Lp(2, 0.4), Lp(3, 0.02), Lp(1.25, 3.0), Lp(1.05, 0.9), Lp(0.5, 0.5),
      Lp(1, 1.0), Lp(1, None), Lp(1, 0.5)]  # fmt: skip


class Plain:
    """The update as it was before there were blocks: whole tensors, one operation after the other."""

    def __init__(self, weights: list[Tensor], penalty: Penalty) -> None:
        self.weights, self.penalty = weights, penalty
        self.Z = [w.detach().clone() for w in weights]
        self.V = [w.detach().clone() for w in weights]

    def _new(self) -> list[Tensor]:
        if isinstance(self.penalty, L0):
            return list(self.penalty.proximal(self.V, self.Z, LAMB / RHO))
        new = []
        for x, z in zip(self.V, self.Z, strict=True):
            w = z.abs().pow_(self.penalty.q - 1).mul_(self.penalty.q)
            if self.penalty.M is not None:
                w.clamp_(max=self.penalty.M)
            threshold = w.mul_(LAMB / RHO)
            new.append(x - x.clamp(-threshold, threshold))
        return new

    @torch.no_grad()
    def update(self) -> dict[str, float]:
        primal = dual = 0.0
        zeros = capped = 0
        for w, z, v in zip(self.weights, self.Z, self.V, strict=True):
            v.neg_().add_(z).add_(w)
            if isinstance(self.penalty, Lp):
                capped += int((z.abs() < self.penalty.knee).sum())
        for w, z, v, new in zip(self.weights, self.Z, self.V, self._new(), strict=True):
            primal += (w - new).double().square_().sum().item()
            dual += (new - z).double().square_().sum().item()
            zeros += int((new == 0).sum())
            z.copy_(new)
            v.neg_().add_(new, alpha=2)
        size = sum(w.numel() for w in self.weights)
        return {
            "primal": math.sqrt(primal),
            "dual": RHO * math.sqrt(dual),
            "sparsity": zeros / size,
            "capped": capped / size,
        }


def bits(tensor: Tensor) -> Tensor:
    """Return what is compared: signs of zeros count, and a NaN equals itself."""
    return tensor.contiguous().view({4: torch.int32, 8: torch.int64}[tensor.element_size()])


def drawn(dtype: torch.dtype = torch.float32, scale: float = 0.1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    weights = [(scale * torch.randn(s, generator=generator, dtype=torch.float64)).to(dtype) for s in SIZES]
    weights[1] = weights[1].to(memory_format=torch.channels_last)
    weights[0][: 50 * blocks.ROW] *= 0.01  # rows without a large entry
    return weights


def compare(weights: list[Tensor], penalty: Penalty, rounds: int = 4) -> None:
    admm, plain = ADMM(weights, penalty, lamb=LAMB, rho=RHO), Plain(weights, penalty)
    generator = torch.Generator().manual_seed(1)
    for _ in range(rounds):
        for w in weights:
            w.add_(0.05 * torch.randn(w.shape, generator=generator, dtype=torch.float64).to(w.dtype))
        expected = plain.update()
        assert vars(admm.update()) == pytest.approx(expected, rel=1e-12, abs=0)
        for i, (ours, theirs) in enumerate(zip(admm.Z + admm.V, plain.Z + plain.V, strict=True)):
            assert torch.equal(bits(ours), bits(theirs)), i


@pytest.fixture(autouse=True)
def one_thread():
    """With more of them the rounding of pow depends on where their borders are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("penalty", [*LP, L0(0.9)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_z_and_v_are_those_of_whole_tensors_bit_by_bit(penalty, dtype):
    compare(drawn(dtype), penalty)


def test_threads_do_not_matter_where_their_borders_fall_between_vectors():
    torch.set_num_threads(2)
    weights = drawn()
    compare([weights[0], weights[2]], Lp(5, 1.0), rounds=2)


@pytest.mark.parametrize("penalty", [p for p in LP if p.p > 1 and p.M], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_float_around_the_knee(penalty, dtype):
    """Also where the entries are let through as flat though a root would have been rounded."""
    eps = torch.finfo(dtype).eps
    for centre in (penalty.knee, penalty.flat_below(eps)):
        steps = torch.arange(-4096, 4096, dtype=torch.float64)
        sizes = (centre * (1 + steps * eps / 2)).to(dtype)
        compare([torch.cat([sizes, -sizes])], penalty, rounds=1)


@pytest.mark.parametrize("penalty", [p for p in LP if p.flat_below(1e-7) > 0], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_below_the_flat_size_the_weight_is_that_of_zero(penalty, dtype):
    below = min(penalty.flat_below(torch.finfo(dtype).eps), 10.0)
    sizes = below * (1 - torch.logspace(-9, 0, 2**15, dtype=torch.float64))
    sizes = sizes.to(dtype)
    assert (sizes < below).sum() > 2**14
    weights = penalty.weight(sizes[sizes < below])
    assert torch.equal(weights, penalty.weight(torch.zeros(1, dtype=dtype)).expand_as(weights))


@pytest.mark.parametrize("penalty", [Lp(5, 1.0), Lp(5, None), Lp(1, 0.5)], ids=str)
def test_zeros_and_what_is_no_number(penalty):
    special = torch.tensor([0.0, -0.0, 1e-42, -1e-42, math.inf, -math.inf, math.nan, 3e38])
    weights = [special.repeat_interleave(8).repeat(64), special.clone(), torch.zeros(blocks.ROW)]
    admm, plain = ADMM(weights, penalty, lamb=LAMB, rho=RHO), Plain(weights, penalty)
    for change in (0.0, -0.0, 0.1):
        for w in weights:
            w.add_(change)
        admm.update()
        plain.update()
        for ours, theirs in zip(admm.Z + admm.V, plain.Z + plain.V, strict=True):
            same = bits(ours) == bits(theirs)
            assert (same | (ours.isnan() & theirs.isnan())).all()


def test_blocks_are_taken_where_they_can_be():
    weights = drawn()
    admm = ADMM(weights, Lp(5, 1.0), lamb=LAMB, rho=RHO)
    triples = blocks.views(admm.weights, admm.Z, admm.V)
    assert [len(w) for w, _, _ in triples] == [w.numel() for w in weights]
    for triple, tensors in zip(triples, zip(admm.weights, admm.Z, admm.V, strict=True), strict=True):
        assert [t.data_ptr() for t in triple] == [t.data_ptr() for t in tensors]
    assert isinstance(Lp(5, 1.0), Linearised)
    assert not isinstance(L0(0.5), Linearised)  # which ranks all entries


@pytest.mark.parametrize(
    "weights",
    [
        torch.randn(6, 4)[:, ::2],
        torch.randn(1, 4).expand(3, 4),
        torch.randn(8, dtype=torch.float64).bfloat16(),
    ],
    ids=["strided", "expanded", "bfloat16"],
)
def test_other_tensors_are_taken_whole(weights):
    admm, plain = (
        kind([weights], Lp(5, 1.0)) for kind in (lambda w, p: ADMM(w, p, lamb=LAMB, rho=RHO), Plain)
    )
    assert blocks.views(admm.weights, admm.Z, admm.V) is None
    assert vars(admm.update()) == pytest.approx(plain.update(), rel=1e-12)
    assert torch.equal(admm.Z[0], plain.Z[0])
    assert torch.equal(admm.V[0], plain.V[0])
