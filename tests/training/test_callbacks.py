"""Pruned weights stay at zero through a training."""

import pytest
import torch

from tests.training.toys import masked, network, trained


@pytest.mark.parametrize("config", [{}, {"optimizer": "adamw", "lr": 0.01}])
def test_pruned_weights_stay_exactly_zero_and_the_others_train(config):
    before, (model, _, _), (free, _, _) = network(), trained(masked, **config), trained(**config)
    masked(before)
    for index in (0, 5):
        zero = before[index].weight == 0
        assert 0 < zero.sum() < zero.numel()
        assert torch.equal(model[index].weight == 0, zero)
        assert (model[index].weight[~zero] != before[index].weight[~zero]).all()
        assert (free[index].weight != 0).all()  # without their keeper
