"""Files from anybody are data: nothing in them is executed, and memory is taken only for what is there."""

import json
import os
import pickle
import subprocess
import sys
import zipfile

import pytest
import torch
from safetensors.torch import save, save_file

from lpslim.base.errors import UserError
from lpslim.models import encoders, storage, weights

STATE = {"0.weight": torch.ones(4, 3), "0.bias": torch.ones(4)}
NOT_EXECUTED = "not a file of tensors alone, and nothing in it was executed"


class Hostile:
    """Calls a function when it is unpickled."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize("form", ["w.pt", "legacy.pth", "plain.pkl", "w.safetensors"])
def test_no_pickle_is_executed(form, tmp_path):
    path, bad = tmp_path / form, Hostile(os.mkdir, str(tmp_path / "ran"))
    for content in (bad, {"state_dict": STATE, "epoch": bad}, {"model": {"state_dict": {"w": [bad]}}}):
        if form == "plain.pkl":
            path.write_bytes(pickle.dumps(content, 2))
        else:
            torch.save(content, path, _use_new_zipfile_serialization=form != "legacy.pth")
        with pytest.raises(UserError, match=NOT_EXECUTED) as refused:
            weights.read(path)
        assert "\n" not in str(refused.value)
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(bad))  # where pickle is trusted it does execute
    assert (tmp_path / "ran").exists()


def bomb(path):
    """Return torch's archive, with a compressed record of zeros that unpacks to a thousand times its size."""
    torch.save(STATE, path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/9", bytes(10_000_000))
    return path.read_bytes()


BROKEN = {
    "empty.pt": lambda _: b"",
    "page.pth": lambda _: b"<!DOCTYPE html><html></html>",
    "other_kind.pt": lambda _: save(STATE),
    "bomb.pt": bomb,
    "cut.safetensors": lambda _: save(STATE)[:-1],
    "header.safetensors": lambda _: (2**63).to_bytes(8, "little") + b"{}",
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_weights_are_refused(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(BROKEN[name](tmp_path / "made.pt"))
    with pytest.raises(UserError, match=NOT_EXECUTED) as refused:
        weights.read(path)
    assert str(refused.value).startswith(f"model.weights={path}: ")
    assert ("would unpack to 100" in str(refused.value)) == (name == "bomb.pt")


VGG = {"family": "vgg", "name": "vgg_small", "input_shape": [3, 8, 8], "kept": {},
       "arguments": {"num_classes": 10, "in_channels": 3}}  # fmt: skip
NEURONS = "transformer.bert.encoder.layer.0.intermediate.dense"


def described(folder, **changes):
    """Write a folder whose few weights are of VGG, whatever its description says."""
    (folder / "architecture.json").write_text(json.dumps({"format": 1, **VGG, **changes}))
    model = storage.dense("vgg", "vgg_small", (3, 8, 8), 10).build()
    save_file(model.state_dict(), folder / "weights.safetensors")
    return folder


def bert(**settings):
    arguments = {"num_classes": 2, "configuration": {**encoders.configuration("tiny"), **settings}}
    return {"family": "bert", "name": "tiny", "input_shape": [3, 16], "arguments": arguments}


DESCRIPTIONS = {
    "another format": ({"format": 2}, "$.format"),
    "an extra key": ({"code": "x"}, "'code'"),
    "classes": ({"arguments": {"num_classes": 10**12}}, "$.arguments[...]"),
    "too many": ({"arguments": {"num_classes": 2**20, "in_channels": 3}}, "floating in the file, (1048576,"),
    "an extra argument": ({"arguments": {"weights": "DEFAULT"}}, "cannot be built: TypeError: "),
    "a way out": ({"family": "../../x"}, "'../../x' is not one of bert, resnet_cifar, torchvision, vgg"),
    "a name": ({"name": "vgg99"}, ": name=vgg99: must be one of vgg_small, vgg16, vgg19"),
    "the largest": ({"family": "torchvision", "name": "regnet_y_128gf", "arguments": {"num_classes": 9}},
                    "does not fit architecture.json: missing "),
    "an input": ({"input_shape": [3, 10**6, 10**6]}, "$.input_shape[1]"),
    "an index": ({"kept": {"features.0": [32]}}, "kept units must be sorted, distinct, in 0..31"),
    "no layer": ({"kept": {"../../x": [0]}}, "'../../x'"),
    "less than it says": ({"kept": {"features.0": [0, 1]}}, "features.0.weight: (32, 3, 3, 3) "),
    "layers": (bert(num_hidden_layers=10**9), "configuration.num_hidden_layers=1000000000"),
    "one neuron of a million": ({**bert(intermediate_size=999_999), "kept": {NEURONS: [0]}}, "does not fit"),
    "no heads": (bert(num_attention_heads=0), "cannot be built: "),
    # nothing in an encoder's settings may name code
    "code": (bert(auto_map="mine.Model"), "configuration.auto_map"),
    "a kernel": (bert(_attn_implementation="somebody/kernel"), "configuration._attn_implementation"),
    "a type": (bert(model_type="gpt2"), "configuration.model_type=gpt2: must be one of bert"),
    "an activation": (bert(hidden_act="os.system"), "configuration.hidden_act=os.system: must be one of"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DESCRIPTIONS)
def test_a_description_that_cannot_be_is_refused(kind, tmp_path):
    changes, message = DESCRIPTIONS[kind]
    with pytest.raises(UserError) as refused:
        storage.load(described(tmp_path, **changes))
    assert str(refused.value).startswith(str(tmp_path))
    assert message in str(refused.value)


@pytest.mark.parametrize("content", [b" " * 4_000_001, b"[" * 100_000, b"{", b"\xff", b"[]"])
def test_text_that_is_no_description_is_refused(content, tmp_path):
    (described(tmp_path) / "architecture.json").write_bytes(content)
    with pytest.raises(UserError, match=r"architecture\.json: not a network of format 1: "):
        storage.load(tmp_path)
    (described(tmp_path) / "weights.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"weights\.safetensors: no readable safetensors"):
        storage.load(tmp_path)


def test_little_memory_is_enough_to_refuse_a_network_of_billions(tmp_path):
    described(tmp_path, **bert(hidden_size=400_000, intermediate_size=999_999))
    code = f"""
import resource, transformers
import lpslim.models.storage, lpslim.models.families.bert
transformers.AutoModelForSequenceClassification, transformers.BertForSequenceClassification
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 2**29, taken + 2**29))
try:
    lpslim.load({str(tmp_path)!r})
except lpslim.base.errors.UserError:
    print("refused")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "refused\n", done.stderr


def test_an_encoders_own_folder_brings_no_code(tmp_path):
    (tmp_path / "mine.py").write_text(f"import os; os.mkdir({str(tmp_path / 'ran')!r})\n")
    own = {"AutoConfig": "mine.Config", "AutoModelForSequenceClassification": "mine.Model",
           "AutoTokenizer": ["mine.Tokenizer", None]}  # fmt: skip
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**encoders.configuration("tiny"), "auto_map": own}))
    assert encoders.configuration(str(tmp_path)) == encoders.configuration("tiny")
    path.write_text(json.dumps({"model_type": "mine", "auto_map": own}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"auto_map": own}))
    for read in (encoders.configuration, encoders.tokenizer):
        with pytest.raises(UserError, match="cannot be loaded"):
            read(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_a_spoilt_encoder_is_refused(tmp_path):
    model, place = storage.dense("bert", "tiny", (3, 16), 2).build(), str(tmp_path)
    model.transformer.save_pretrained(place)
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x04N.")
    (tmp_path / "tokenizer.json").write_bytes(b'{"model": {"type": "mine"}}')
    with pytest.raises(UserError, match=f"^dataset.tokenizer={place}: cannot be loaded "):
        encoders.tokenizer(place)
    with pytest.raises(UserError, match=f"^model.weights={place}: cannot be loaded "):
        encoders.encoder(place, model.transformer.config)
    (tmp_path / "config.json").write_bytes(b"{")
    with pytest.raises(UserError, match=f"^model.name={place}: cannot be loaded "):
        encoders.configuration(place)
