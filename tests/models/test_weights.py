"""Weights from outside: every wrapping that is understood, every refusal, and nothing executed."""

import os
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lpslim.base import registry
from lpslim.base.errors import UserError
from lpslim.models import weights


@pytest.fixture
def model(network):
    return network("resnet_cifar", "resnet20", (3, 32, 32))


def fresh(classes=10):
    return lookup.find("models", "resnet_cifar").build("resnet20", num_classes=classes)


def same(one, other):
    return all(torch.equal(value, other[key]) for key, value in one.items())


WRAPPINGS = {
    "bare": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "best_prec1": 91.7, "epoch": 3},
    "model_state_dict": lambda s: {"model_state_dict": s, "optimizer": {"lr": 0.1}},
    "net": lambda s: {"net": s, "acc": 95.0},
    "nested": lambda s: {"model": {"state_dict": s}},
    "beside a name": lambda s: {"model": "resnet20", "net": s},
    "module.": lambda s: {f"module.{k}": v for k, v in s.items()},
    "compiled and parallel": lambda s: {"state_dict": {f"_orig_mod.module.{k}": v for k, v in s.items()}},
    "parallel and compiled": lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()},
    "fc for linear": lambda s: {k.replace("linear.", "fc."): v for k, v in s.items()},
    "no counters": lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_every_wrapping_is_understood(wrapping, model, tmp_path):
    torch.save(WRAPPINGS[wrapping](model.state_dict()), tmp_path / "weights.pth")
    other = fresh()
    aliases = lookup.find("models", "resnet_cifar").ALIASES
    checkpoints.initialise(other, str(tmp_path / "weights.pth"), "resnet20", aliases)
    assert same(other.state_dict(), model.state_dict())


def test_safetensors_are_read(model, tmp_path):
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    other = fresh()
    checkpoints.load_into(other, checkpoints.read(tmp_path / "weights.safetensors"), "x")
    assert same(other.state_dict(), model.state_dict())


class Hostile:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_a_pickle_that_would_execute_is_refused_and_does_not(tmp_path):
    torch.save({"state_dict": {"w": Hostile(str(tmp_path / "executed"))}}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match="not a checkpoint of tensors alone, and nothing in it was executed"):
        checkpoints.read(tmp_path / "bad.pth")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["cut.pth", "cut.safetensors"])
def test_a_truncated_file_is_refused(name, model, tmp_path):
    path = tmp_path / name
    (save_file if "safe" in name else torch.save)(model.state_dict(), path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="not a checkpoint of tensors alone"):
        checkpoints.read(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds no tensors by name, nor under state_dict, model_state_dict, model, net"),
        ({}, "holds no tensors by name"),
        ({"state_dict": {}}, "holds no tensors by name"),
        ({"w": torch.ones(1), "epoch": 3}, "'epoch' is no tensor; expected a state dict"),
    ],
)
def test_what_is_no_state_dict_is_refused(content, message, tmp_path):
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(UserError, match=message):
        checkpoints.read(tmp_path / "odd.pth")


def test_a_wrapper_that_holds_itself_is_refused(tmp_path):
    endless = {"epoch": 3}
    endless["model"] = endless
    torch.save(endless, tmp_path / "odd.pth")
    with pytest.raises(UserError, match="'epoch' is no tensor"):
        checkpoints.read(tmp_path / "odd.pth")


def test_a_mismatch_names_the_keys_and_changes_nothing(model):
    state = model.state_dict()
    del state["bn1.weight"]
    state["layer2.0.shortcut.0.weight"] = torch.zeros(32, 16, 1, 1)  # an option-B shortcut
    other = fresh(classes=100)
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(UserError) as refused:
        checkpoints.load_into(other, state, "file.pth")
    assert str(refused.value) == (
        "model.weights=file.pth: does not fit: missing bn1.weight; unexpected layer2.0.shortcut.0.weight; "
        "linear.weight: (10, 64) in the file, (100, 64) in the network; "
        "linear.bias: (10,) in the file, (100,) in the network"
    )
    assert same(other.state_dict(), before)


def test_a_long_list_is_cut(model):
    with pytest.raises(UserError, match=r"missing conv1\.weight, .* and \d+ more; unexpected x$"):
        checkpoints.load_into(model, {"x": torch.zeros(1)}, "file.pth")


def test_an_alias_does_not_touch_what_fits():
    state = {"fc.weight": torch.zeros(1)}
    assert list(checkpoints.renamed(state, {"fc.weight": torch.zeros(1)}, {"fc.": "linear."})) == [
        "fc.weight"
    ]
    assert list(checkpoints.renamed(state, {}, {"fc.": "linear."})) == ["linear.weight"]


def test_identity_is_the_content_of_a_file_or_torchvisions_entry(tmp_path):
    one, other = tmp_path / "a", tmp_path / "b"
    one.write_bytes(b"x")
    other.write_bytes(b"x")
    assert checkpoints.identity(str(one), "resnet20") == checkpoints.identity(str(other), "resnet20")
    assert checkpoints.identity("DEFAULT", "resnet50") == "ResNet50_Weights.IMAGENET1K_V2"


@pytest.mark.parametrize(
    ("model_name", "message"),
    [
        ("resnet20", "model.weights=V9: must be a file that exists, torchvision has none of this network"),
        (
            "resnet50",
            "model.weights=V9: must be a file that exists, or one of IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT",
        ),
    ],
)
def test_an_unknown_source_is_refused_with_what_there_is(model_name, message):
    with pytest.raises(UserError) as refused:
        checkpoints.identity("V9", model_name)
    assert str(refused.value) == message


def test_torchvisions_weights_are_loaded_and_a_failed_download_is_told(monkeypatch, model):
    given = {key: value.clone() for key, value in model.state_dict().items()}
    asked = []
    entry = SimpleNamespace(
        url="https://example.org/w.pth", get_state_dict=lambda **how: asked.append(how) or given
    )
    monkeypatch.setattr(checkpoints, "_entry", lambda source, name: entry)
    other = fresh()
    checkpoints.initialise(other, "DEFAULT", "resnet20", {})
    assert same(other.state_dict(), given)
    assert asked == [{"progress": False, "check_hash": True, "weights_only": True}]

    for problem in (OSError("no route"), RuntimeError("invalid hash value")):
        entry.get_state_dict = Mock(side_effect=problem)
        with pytest.raises(UserError) as refused:
            checkpoints.initialise(other, "DEFAULT", "resnet20", {})
        assert str(refused.value) == (
            f"model.weights=DEFAULT: could not be downloaded ({problem}); "
            "fetch https://example.org/w.pth yourself and give the file"
        )


def test_a_missing_file_is_told():
    with pytest.raises(UserError, match=r"model\.weights=nowhere\.pth: no such file"):
        checkpoints.read(Path("nowhere.pth"))


def test_settings_beside_the_weights_are_passed_over(tmp_path):
    torch.save({"state_dict": {"a": torch.ones(2)}, "args": Namespace(lr=0.1)}, tmp_path / "x.pt")
    assert checkpoints.read(tmp_path / "x.pt").keys() == {"a"}


def test_what_made_a_file_refused_is_named_with_the_way_out(tmp_path):
    torch.save({"state_dict": {"a": torch.ones(2)}, "best": np.float64(93.1)}, tmp_path / "x.pt")
    way_out = r"\(it holds numpy\S+, numpy\.dtype: save its state dict alone, on a machine"
    with pytest.raises(UserError, match=way_out):
        checkpoints.read(tmp_path / "x.pt")
