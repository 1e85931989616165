"""Zero channels change the widths in a file, and nothing that it computes."""

from __future__ import annotations

from dataclasses import replace

import onnx
import pytest
import torch
from torch import nn

from lpslim import export, lookup, padding, surgery
from lpslim.architecture import Architecture

VGG = Architecture("vgg", "vgg_small", (3, 32, 32), {"num_classes": 10})
RESNET = Architecture("resnet_cifar", "resnet20", (3, 32, 32), {"num_classes": 10})


def as_exported(_):
    """Leave the file as it is."""


def widths(path):
    """Return inputs and outputs of every convolution in a file."""
    model = onnx.load(path)
    found = {name: each.dims for each in model.graph.initializer for name in [each.name]}
    same = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Identity"}
    convolutions = [node.input[1] for node in model.graph.node if node.op_type == "Conv"]
    return [(found[same.get(name, name)][1], found[same.get(name, name)][0]) for name in convolutions]


def logits(path, batch=3):
    generator = torch.Generator().manual_seed(0)
    return export.logits(export.session(path, 1), torch.randn(batch, 3, 32, 32, generator=generator))


def cut(described, kept):
    model = described.build()
    prunables = lookup.find("models", described.family).prunable(model)
    units = surgery.find_units(model, torch.zeros(1, 3, 32, 32), prunables)
    chosen = {each.layer: list(range(n)) for each, n in zip(units, kept, strict=True)}
    return replace(described, kept=chosen).build().eval()


@pytest.fixture
def files(tmp_path):
    """Write a network as torch exports it and as it is filled up; return both files."""

    def write(model):
        example = torch.zeros(1, 3, 32, 32)
        export.write(model, example, tmp_path / "plain.onnx", as_exported)
        export.write(model, example, tmp_path / "filled.onnx")
        return tmp_path / "plain.onnx", tmp_path / "filled.onnx"

    return write


def test_odd_widths_are_filled_up_to_multiples_of_four(files):
    plain, filled = files(cut(VGG, [17, 9, 33, 44, 61, 127]))
    assert widths(plain) == [(3, 17), (17, 9), (9, 33), (33, 44), (44, 61), (61, 127)]
    # few channels need no filling, a linear layer reads the last, and its weights are not touched
    assert widths(filled) == [(3, 20), (20, 9), (9, 36), (36, 44), (44, 64), (64, 127)]
    torch.testing.assert_close(logits(filled), logits(plain))


@pytest.mark.parametrize("settled", [True, False], ids=["equal biases", "biases of their own"])
def test_biases_that_layers_have_in_common_stay_what_they_are(files, network, settled):
    model = cut(RESNET, [5, 9, 16, 17, 19, 31, 33, 50, 63])
    if not settled:
        state = network("resnet_cifar", "resnet20", (3, 32, 32)).state_dict()
        for name, value in model.state_dict().items():
            value.copy_(state[name][tuple(slice(n) for n in value.shape)])
    plain, filled = files(model)
    inner = [(before[1], after[1]) for before, after in zip(widths(plain), widths(filled), strict=True)]
    assert inner[1::2] == [
        (5, 5),
        (9, 9),
        (16, 16),
        (17, 20),
        (19, 20),
        (31, 32),
        (33, 36),
        (50, 52),
        (63, 64),
    ]
    assert [after for _, after in inner[2::2]] == [16] * 3 + [32] * 3 + [64] * 3  # the residual stream
    torch.testing.assert_close(logits(filled), logits(plain), rtol=1e-4, atol=1e-4)


class Forked(nn.Module):
    """Channels that are also read by what is no convolution, or by one in groups."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 18, 3)
        self.second, self.grouped = nn.Conv2d(18, 18, 1), nn.Conv2d(18, 18, 3, groups=18)

    def forward(self, x):
        x = torch.relu(self.first(x))
        return self.grouped(self.second(x) * 2 + x).mean((2, 3))


def test_channels_that_anything_else_reads_stay(files):
    plain, filled = files(Forked().eval())
    assert plain.read_bytes() == filled.read_bytes()
    assert padding.pad(plain) == 0
