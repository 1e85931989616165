"""A description can claim anything; memory is taken only for what is there."""

import json
import resource
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from lpslim import architecture, pretrained
from lpslim.architecture import Architecture
from lpslim.errors import UserError

VGG = {"family": "vgg", "name": "vgg_small", "input_shape": [3, 8, 8], "kept": {},
       "arguments": {"num_classes": 10, "in_channels": 3}}  # fmt: skip
BERT = {"family": "bert", "name": "tiny", "input_shape": [3, 16], "kept": {}}
LAYER = "transformer.bert.encoder.layer.0.intermediate.dense"


def saved(folder, base, **changes):
    """Write a folder whose few weights are of VGG, whatever its description says."""
    (folder / "architecture.json").write_text(json.dumps({"format": 1, **base, **changes}))
    model = Architecture(**{**VGG, "input_shape": (3, 8, 8)}).build()
    save_file(model.state_dict(), folder / "weights.safetensors")
    return folder


def encoder(**changes):
    return {"num_classes": 2, "configuration": {**pretrained.configuration("tiny"), **changes}}


WRONG = {
    "classes": ({"arguments": {"num_classes": 10**12}}, "arguments.num_classes=1000000000000: Input should"),
    "no class": ({"arguments": {"num_classes": 0}}, "arguments.num_classes=0: Input should be"),
    "minus": ({"arguments": {"num_classes": -5}}, "arguments.num_classes=-5: Input should be"),
    "many classes": ({"arguments": {"num_classes": 2**20}}, "classifier.weight: (10, 128) in the file, "),
    "a text": ({"arguments": {"num_classes": "10"}}, "arguments.num_classes='10': Input should be a valid"),
    "an extra argument": ({"arguments": {"weights": "DEFAULT"}}, "arguments.weights: unknown"),
    "no arguments": ({"arguments": {}}, "cannot be built: TypeError: "),
    "an extra key": ({"code": "x"}, "code: unknown"),
    "a family": ({"family": "os.path"}, "cannot be built: models: 'os.path' is not one of bert, resnet"),
    "a way out": ({"family": "../../x"}, "cannot be built: models: '../../x' is not one of bert"),
    "a private one": ({"family": "__init__"}, "cannot be built: models: '__init__' is not one of bert"),
    "a name": ({"name": "vgg99"}, "cannot be built: vgg: 'vgg99' is not one of vgg_small, vgg16, vgg19"),
    "another name": ({"name": "vgg16"}, "does not fit architecture.json: missing "),
    "the largest": ({"family": "torchvision_zoo", "name": "regnet_y_128gf", "arguments": {"num_classes": 9}},
                    "does not fit architecture.json: missing "),
    "input": ({"input_shape": [3, 10**6, 10**6]}, "input_shape.1=1000000: Input should be less than"),
    "no input": ({"input_shape": []}, "input_shape=[]: List should have at least 2 items"),
    "an index": ({"kept": {"features.0": [32]}}, "kept units must be sorted, distinct, in 0..31, not none"),
    "an index below": ({"kept": {"features.0": [-1]}}, "kept.features.0.0=-1: Input should be greater than"),
    "twice": ({"kept": {"features.0": [1, 1]}}, "kept units must be sorted, distinct, in 0..31, not none"),
    "none kept": ({"kept": {"features.0": []}}, "kept units must be sorted, distinct, in 0..31, not none"),
    "no layer": ({"kept": {"features.99": [0]}}, "has no convolution or linear layer of this name"),
    "not a layer": ({"kept": {"../../x": [0]}}, "has no convolution or linear layer of this name"),
    "less than it says": ({"kept": {"features.0": [0, 1]}}, "features.0.weight: (32, 3, 3, 3) in the file"),
    "fractions": ({"kept": {"features.0": [0.5]}}, "kept.features.0.0=0.5: Input should be a valid integer"),
    "layers": ({**BERT, "arguments": encoder(num_hidden_layers=10**9)},
               "configuration.num_hidden_layers=1000000000: must be at most 1000"),
    "billions": ({**BERT, "arguments": encoder(hidden_size=400_000, intermediate_size=1_600_000)},
                 "does not fit architecture.json: missing "),
    "a neuron of billions": ({**BERT, "arguments": encoder(intermediate_size=9_999_999),
                              "kept": {LAYER: [0]}}, "does not fit architecture.json: missing "),
    "words": ({**BERT, "arguments": encoder(vocab_size=10**15)}, "configuration.vocab_size=10000000000000"),
    "no heads": ({**BERT, "arguments": encoder(num_attention_heads=0)}, "cannot be built: "),
    "nested": ({**BERT, "arguments": encoder(hidden_size={"a": 1})}, "arguments.configuration.hidden_size"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_a_description_that_cannot_be_is_refused(kind, tmp_path):
    changes, message = WRONG[kind]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError) as refused:
        architecture.load(saved(tmp_path, VGG, **changes))
    assert str(refused.value).startswith(str(tmp_path))
    assert message in str(refused.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KB; imports included


def test_little_memory_is_enough_to_refuse_a_network_of_billions(tmp_path):
    large = {**BERT, "arguments": encoder(hidden_size=400_000, intermediate_size=1_600_000)}
    saved(tmp_path, large)
    code = f"""
import resource
import lpslim, lpslim.models.bert
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 2**29, taken + 2**29))
try:
    lpslim.load({str(tmp_path)!r})
except lpslim.architecture.UserError as problem:
    print("refused")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "refused\n", done.stderr


def test_weights_may_be_halved_but_no_whole_numbers(tmp_path):
    folder = saved(tmp_path, VGG)
    state = Architecture(**{**VGG, "input_shape": (3, 8, 8)}).build().state_dict()
    halves = {n: value.half() if value.is_floating_point() else value for n, value in state.items()}
    save_file(halves, folder / "weights.safetensors")
    assert architecture.load(folder).classifier.weight.dtype == torch.float32
    save_file({**state, "classifier.bias": torch.ones(10).long()}, folder / "weights.safetensors")
    with pytest.raises(UserError, match=r"classifier\.bias is of torch\.int64, not of torch\.float32"):
        architecture.load(folder)


def test_a_description_of_no_end_is_not_read(tmp_path):
    saved(tmp_path, VGG)
    (tmp_path / "architecture.json").write_text(" " * 4_000_001)
    with pytest.raises(UserError, match="not a network of format 1: larger than 4000000 bytes"):
        architecture.load(tmp_path)
