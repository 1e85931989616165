"""Pruned weights stay at zero through a training."""

import pytest
import torch

from lpslim.training.callbacks import MaskKeeper
from tests.training.toys import network, trained


def masked():
    model = network()
    with torch.no_grad():
        for weight in (model[0].weight, model[-1].weight):
            weight.mul_(weight.abs() > weight.abs().median())
    return model


@pytest.mark.parametrize("config", [{}, {"optimizer": "adamw", "lr": 0.01}])
def test_pruned_weights_stay_exactly_zero_and_the_others_train(config):
    before, (model, _, _) = masked(), trained(MaskKeeper, model=masked(), **config)
    for index in (0, 5):
        zero = before[index].weight == 0
        assert 0 < zero.sum() < zero.numel()
        assert torch.equal(model[index].weight == 0, zero)
        assert (model[index].weight[~zero] != before[index].weight[~zero]).all()
    free, _, _ = trained(model=masked(), **config)
    assert (free[0].weight != 0).all()  # without its keeper
