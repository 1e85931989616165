"""Modes, example inputs, and layers by name."""

import pytest
import torch
from torch import nn

from lpslim.base.errors import UserError
from lpslim.base.modules import eval_mode, example_input, matches, weight_of


def test_every_module_is_in_its_own_mode_again():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm2d(2)))
    model[1].training = False
    with eval_mode(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == [True, True, False, True]


def test_examples_are_blank_images_or_tokens_without_padding():
    assert torch.equal(example_input((3, 4, 5), batch=2), torch.zeros(2, 3, 4, 5))
    assert example_input((3, 7))[0, 1:].tolist() == [[1] * 7, [0] * 7]


@pytest.mark.parametrize(
    ("pattern", "layers"),
    [("a.1", {"a.1", "a.1.b"}), ("a", {"a", "a.1", "a.1.b", "a.10"}), ("*.b", {"a.1.b"}), ("A", set())],
)
def test_patterns_name_layers_modules_and_globs(pattern, layers):
    assert {name for name in ("a", "a.1", "a.1.b", "a.10", "ab") if matches(name, [pattern])} == layers


def test_weights_by_layer():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    assert torch.equal(weight_of(model, "0"), model[0].weight)
    assert not weight_of(model, "0").requires_grad
    for layer in ("1", "nowhere"):
        with pytest.raises(UserError, match=f"'{layer}'"):
            weight_of(model, layer)
