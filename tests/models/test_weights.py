"""Pretrained weights: the wrappings that are understood, what does not fit, published ones."""

from argparse import Namespace
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import save_file

from lpslim.base.errors import UserError
from lpslim.models import family as families
from lpslim.models import weights

RESNETS = families.get("resnet_cifar")


@pytest.fixture
def model(network):
    return network("resnet_cifar", "resnet20", (3, 32, 32))


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def copied(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


WRAPPINGS = {
    "bare": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "best_prec1": 91.7, "args": Namespace(lr=0.1)},
    "nested": lambda s: {"model": {"state_dict": s}},
    "beside a name": lambda s: {"model": "resnet20", "net": s},
    "parallel and compiled": lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()},
    "fc for linear": lambda s: {k.replace("linear.", "fc."): v for k, v in s.items()},
    "no counters": lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_every_wrapping_is_understood(wrapping, model, tmp_path):
    path = str(tmp_path / "weights.pth")
    torch.save(WRAPPINGS[wrapping](model.state_dict()), path)
    other = RESNETS.build("resnet20", num_classes=10)
    RESNETS.load_weights(other, "resnet20", path)
    assert same(other.state_dict(), model.state_dict())


def test_safetensors_of_half_precision_are_read(model, tmp_path):
    state = {n: v.half() if v.is_floating_point() else v for n, v in model.state_dict().items()}
    save_file(state, path := tmp_path / "weights.safetensors")
    weights.load_into(model, weights.read(path), "any")
    assert torch.equal(model.linear.weight, state["linear.weight"].float())


ENDLESS = {"epoch": 3}
ENDLESS["model"] = ENDLESS


@pytest.mark.parametrize(
    "content",
    [[1, 2], {"state_dict": {}}, {1: torch.ones(1)}, {"w": torch.ones(1), "epoch": 3}, ENDLESS],
    ids=["a list", "nothing", "a number for a name", "another value", "endless"],
)
def test_what_is_no_state_dict_is_refused(content, tmp_path):
    torch.save(content, path := tmp_path / "odd.pth")
    with pytest.raises(UserError, match=f"^model.weights={path}: no tensors by name, .* under state_dict, "):
        weights.read(path)


MISFITS = {
    "a name": (lambda s: s.update(x=s.pop("bn1.bias")), "does not fit: missing bn1.bias; unexpected x"),
    "a shape": (lambda s: s.update({"linear.bias": torch.ones(3)}), "linear.bias: (3,) floating in the file"),
    "whole numbers": (lambda s: s.update({"linear.bias": torch.ones(10).long()}), "(10,) whole in the file"),
    "NaN": (lambda s: s["linear.bias"].fill_(float("nan")), "linear.bias holds values"),
    "sparse": (lambda s: s.update({"linear.bias": torch.ones(10).to_sparse()}), "linear.bias holds values"),
    "all": (dict.clear, "missing bn1.bias, bn1.running_mean, "),
}  # fmt: skip


@pytest.mark.parametrize("kind", MISFITS)
def test_weights_that_do_not_fit_leave_the_network_as_it_was(kind, model):
    change, message = MISFITS[kind]
    before, state = copied(model), copied(model)
    change(state)
    with pytest.raises(UserError) as refused:
        weights.load_into(model, state, "file.pth")
    assert str(refused.value).startswith("model.weights=file.pth: ")
    assert message in str(refused.value)
    assert len(str(refused.value)) < 200
    assert same(model.state_dict(), before)


def test_an_alias_acts_only_where_the_network_lacks_the_name(tmp_path):
    model = torch.nn.ModuleDict({"fc": torch.nn.Linear(2, 2), "linear": torch.nn.Linear(2, 2)})
    torch.save(before := copied(model), tmp_path / "weights.pt")
    RESNETS.load_weights(model, "any", str(tmp_path / "weights.pt"))
    assert same(model.state_dict(), before)


def test_identity_is_the_hash_of_a_file_or_the_published_name(tmp_path):
    for name in "ab":
        (tmp_path / name).write_bytes(b"x")
    one, other = (RESNETS.weights_identity("resnet20", str(tmp_path / name)) for name in "ab")
    assert one == other == "sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    identity = families.get("torchvision").weights_identity("resnet50", "DEFAULT")
    assert identity == "ResNet50_Weights.IMAGENET1K_V2"


def test_an_unknown_source_is_refused_with_what_there_is():
    with pytest.raises(UserError, match=r"^model\.weights=V9: must be a file that exists$"):
        RESNETS.load_weights(torch.nn.Identity(), "resnet20", "V9")
    choices = "a file that exists, or one of IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT"
    with pytest.raises(UserError, match=rf"^model\.weights=V9: must be {choices}$"):
        families.get("torchvision").weights_identity("resnet50", "V9")


def test_published_weights_are_loaded_and_a_failed_download_names_the_way_out(model, monkeypatch):
    state = copied(model)
    entry = SimpleNamespace(url="https://example.org/w.pth", get_state_dict=Mock(return_value=state))
    monkeypatch.setattr(RESNETS, "published", lambda name: {"DEFAULT": entry})
    other = RESNETS.build("resnet20", num_classes=10)
    RESNETS.load_weights(other, "resnet20", "DEFAULT")
    assert same(other.state_dict(), state)
    assert entry.get_state_dict.call_args.kwargs.items() >= {"check_hash": True, "weights_only": True}.items()
    for problem in (OSError("no route"), RuntimeError("invalid hash value")):
        entry.get_state_dict = Mock(side_effect=problem)
        with pytest.raises(UserError, match=rf"^model\.weights=DEFAULT: .*{problem}.*https://example\.org/w"):
            RESNETS.load_weights(other, "resnet20", "DEFAULT")
