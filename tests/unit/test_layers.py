"""A profile's nodes find their layers, and the layers' multiply-adds and times add up."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from benchmarks import layers, pairs
from benchmarks.layers import Line, Node
from lpslim import cost, lookup
from lpslim.architecture import Architecture


@pytest.mark.parametrize(
    ("node", "module"),
    [
        ("/conv1/Conv", "conv1"),
        ("/features/features.3/Conv", "features.3"),
        ("/layer1/layer1.0/conv2/Conv", "layer1.0.conv2"),
        ("/layer2/layer2.0/downsample/downsample.0/Conv", "layer2.0.downsample.0"),
        ("/bert/encoder/layer.0/attention/self/query/MatMul", "bert.encoder.layer.0.attention.self.query"),
        ("/Relu", ""),
        ("ReorderOutput_token_3", ""),
    ],
)
def test_a_node_is_named_after_its_module(node, module):
    assert layers.module_of(node) == module


@pytest.mark.parametrize(
    ("layer", "kind"),
    [("layer1.12.conv1", "layer1.*.conv1"), ("features.3", "features.3"), ("a.0.b.1.c", "a.*.b.*.c")],
)
def test_layers_of_all_blocks_are_one_kind(layer, kind):
    assert layers.kind(layer) == kind


def event(name, operator, microseconds):
    return {
        "cat": "Node",
        "name": f"{name}_kernel_time",
        "dur": microseconds,
        "args": {"op_name": operator},
    }


def made(operator, name, first=""):
    return SimpleNamespace(op_type=operator, name=name, input=[first])


def test_nodes_are_found_behind_what_onnx_runtime_makes_of_them():
    calls = [9000, 9000, 3000, 1000, 2000]  # the first two warm up
    events = [{"cat": "Session", "name": "model_run", "dur": 1}]
    for each in calls:
        events += [
            event("/a/a.2/Relu_output_0_nchwc", "Conv", each),  # a convolution and its activation
            event("ReorderOutput", "ReorderOutput", 100),
            event("/a/a.3/Conv", "FusedConv", each / 2),
            event("fused /head/Gemm", "FusedGemm", 20),
            event("/head/Add", "Add", 10),
            {"cat": "Node", "name": "/head/Add_fence_before", "dur": 5, "args": {"op_name": "Add"}},
        ]
    made_by = {
        "/a/a.2/Relu_output_0": made("Relu", "/a/a.2/Relu", "/a/a.0/Conv_output_0"),
        "/a/a.0/Conv_output_0": made("Conv", "/a/a.0/Conv"),
    }
    assert layers.nodes(events, made_by, {"a.0", "a.3", "head"}) == [
        Node("a.0", True, 2.0, True),
        Node("ReorderOutput", False, 0.1, False),
        Node("a.3", True, 1.0, False),
        Node("head", True, 0.02, False),
        Node("head", True, 0.01, False),
    ]


def test_lines_add_up():
    found = [
        Node("s.0.c", True, 1.0, True),
        Node("Add", False, 0.5, False),
        Node("s.1.c", True, 2.0, False),
        Node("Add", False, 0.25, False),
        Node("head", True, 3.0, False),
        Node("head", True, 4.0, False),  # a layer's second node, its bias
    ]
    assert layers.lines(found, {"s.0.c": 10, "s.1.c": 20, "head": 5}) == [
        Line("s.*.c", True, 2, 30, 3.0, 1),
        Line("head", True, 1, 5, 7.0, 0),
        Line("Add", False, 2, 0, 0.75, 0),
    ]


TINY = {"num_classes": 2, "configuration": lookup.find("models", "bert").configuration("tiny")}


@pytest.mark.parametrize(
    "dense",
    [
        Architecture("vgg", "vgg_small", (3, 32, 32), {"num_classes": 10}),
        Architecture("resnet_cifar", "resnet20", (3, 32, 32), {"num_classes": 10}),
        Architecture("bert", "tiny", (3, 24), TINY),
    ],
    ids=lambda each: each.name,
)
def test_every_layer_of_a_network_is_found_in_its_profile(dense):
    model = dense.build().eval()
    networks = pairs.Networks(model, model, dense.input_shape, *[cost.Cost(1, 1)] * 2)
    before, after = layers.profiled(networks, batch=2, calls=2, threads=1)
    assert [each.name for each in before] == [each.name for each in after]
    found = [each for each in before if each.is_layer]
    assert {each.name for each in found} == {layers.kind(name) for name in layers.layer_names(model)}
    assert sum(each.count for each in found) == len(layers.layer_names(model))
    example = pairs.inputs(dense.input_shape, 1)
    assert sum(each.macs for each in found) == cost.count(model, example).macs
    assert all(each.ms > 0 for each in before)
    assert all(each.blocked <= each.count for each in before)
    assert torch.tensor([each.macs for each in before if not each.is_layer]).sum() == 0
