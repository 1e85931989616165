"""The regularisers in the loop against their formulas; their plug-in signature; networks that they refuse."""

import pytest
import torch
from torch import nn

from lpslim.base.errors import UserError
from lpslim.sparsity.penalties.lp import Lp
from lpslim.training.callbacks import Callback
from lpslim.training.regularizers import admm, bn_l1
from tests.sparsity.test_admm import Reference
from tests.training.toys import STEPS, network, trained

LAMB, RHO = 1e-2, 1e-1
KNOBS = {"penalty": Lp(p=5, M=1.0), "lamb": LAMB, "rho": RHO, "form": "squared", "updates_per_epoch": 2}


class ByHand(Callback):
    """The ADMM as it is written on paper, in double precision, after every second step."""

    def __init__(self, model):
        self.layers = [model[0], model[-1]]

    def weights(self):
        return [layer.weight.detach().double().numpy() for layer in self.layers]

    def begin(self):
        self.admm = Reference(self.weights(), KNOBS["penalty"], LAMB, RHO)

    def after_backward(self):
        for layer, w, z, u in zip(self.layers, self.weights(), self.admm.Z, self.admm.U, strict=True):
            layer.weight.grad += torch.from_numpy(RHO * (w - z + u)).float()

    def after_step(self, step, steps_per_epoch):
        if step % (STEPS // 2) == 0:
            self.residuals = self.admm.step(self.weights())


def test_the_admm_in_the_loop_is_the_reference():
    model, _, found = trained(lambda model: admm.build(model, **KNOBS))
    expected, _, reference = trained(ByHand)
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, atol=1e-5, rtol=1e-4)
    assert list(found.sparse()) == ["0.weight", "5.weight"]
    exact_ones = [torch.from_numpy(z) for z in reference.admm.Z]
    for z, exact in zip(found.sparse().values(), exact_ones, strict=True):
        torch.testing.assert_close(z, exact.float(), atol=1e-5, rtol=1e-4)
        assert torch.equal(z == 0, exact == 0)
    assert any((z == 0).any() for z in exact_ones)
    assert found.convergence[-1]["primal"] == pytest.approx(reference.residuals["primal"], rel=1e-4)


@pytest.mark.parametrize(("updates", "ends"), [(1, [4, 8, 12]), (3, [2, 3, 4, 6, 7, 8, 10, 11, 12])])
def test_outer_iterations_end_at_equal_parts_of_an_epoch(updates, ends):
    found = trained(lambda model: admm.build(model, **KNOBS | {"updates_per_epoch": updates}))[2]
    rows = [(row["iteration"], row["epoch"] * STEPS) for row in found.convergence]
    assert rows == list(enumerate(ends, 1))


def test_bn_l1_adds_the_sign_of_every_scale_and_nothing_at_zero():
    model = network()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([2.0, -0.5, 0.0, 1.0]))
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    bn_l1.build(model, lamb=0.25).after_backward()
    assert model[1].weight.grad.tolist() == [3.25, 2.75, 3.0, 3.25]
    assert all((p.grad == 3.0).all() for p in model.parameters() if p is not model[1].weight)


def test_a_network_without_what_it_acts_on_is_refused():
    with pytest.raises(UserError, match=r"regularizer\.name=admm.*linear"):
        admm.build(nn.Sequential(nn.BatchNorm2d(3)), **KNOBS)
    with pytest.raises(UserError, match=r"regularizer\.name=bn_l1.*batch-norm"):
        bn_l1.build(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm2d(3, affine=False)), lamb=LAMB)
