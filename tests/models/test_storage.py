"""A saved network comes back, bit for bit, in a process that knows nothing of how it was made."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lpslim.base import registry
from lpslim.base.errors import UserError
from lpslim.models import storage
from lpslim.models.storage import Architecture
from lpslim.pruning import graph

SAVED = {
    "vgg_small-dense": ("vgg", "vgg_small", (1, 8, 8), False),
    "vgg_small-pruned": ("vgg", "vgg_small", (1, 8, 8), True),
    "resnet20-pruned": ("resnet_cifar", "resnet20", (3, 32, 32), True),
    "resnet50-pruned": ("resnet_imagenet", "resnet50", (3, 64, 64), True),
}

ELSEWHERE = """
import sys
import lpslim
from lpslim.models import storage
import torch
from safetensors.torch import load_file, save_file

threads, *folders = sys.argv[1:]
torch.set_num_threads(int(threads))  # the order of a sum may depend on it
for folder in folders:
    model = architecture.load(folder)
    assert not model.training
    with torch.no_grad():
        logits = model(load_file(f"{folder}.images")["images"])
    save_file({"logits": logits}, f"{folder}.logits")
print(",".join(sorted(name for name in sys.modules if name.startswith("lpslim.") or name == "hydra")))
"""


@dataclass(frozen=True)
class Saved:
    folder: Path
    model: nn.Module
    described: Architecture
    images: Tensor


@pytest.fixture
def saved(tmp_path, network, random_kept):
    """Save a network, dense or pruned, by its name in ``SAVED``."""

    def make(name: str) -> Saved:
        family, model_name, shape, pruned = SAVED[name]
        model, example = network(family, model_name, shape), torch.zeros(1, *shape)
        kept = {}
        if pruned:
            units = surgery.find_units(model, example, lookup.find("models", family).prunable(model))
            kept = random_kept(units, seed=4)
            surgery.prune(model, example, kept)
        arguments = {"num_classes": 10, "in_channels": shape[0]}
        described = Architecture(family, model_name, shape, arguments, kept)
        folder = tmp_path / name
        folder.mkdir()
        architecture.save(folder, model, described)
        images = torch.randn(3, *shape, generator=torch.Generator().manual_seed(5))
        return Saved(folder, model, described, images)

    return make


def test_same_logits_in_another_process(saved, tmp_path):
    everything = [saved(name) for name in SAVED]
    for each in everything:
        save_file({"images": each.images}, f"{each.folder}.images")
    finished = subprocess.run(
        [
            sys.executable,
            "-c",
            ELSEWHERE,
            str(torch.get_num_threads()),
            *(str(each.folder) for each in everything),
        ],
        cwd=tmp_path,  # far from conf/ and from the sources
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    for each in everything:
        with torch.no_grad():
            expected = each.model(each.images)
        assert expected.std() > 0
        assert torch.equal(load_file(f"{each.folder}.logits")["logits"], expected), each.folder.name
    loaded = finished.stdout.strip().split(",")
    assert "lpslim.models.storage" in loaded
    for unneeded in ("lpslim.experiment.config", "lpslim.training.loop", "lpslim.experiment.stages", "hydra"):
        assert unneeded not in loaded


@pytest.mark.parametrize("name", ["vgg_small-dense", "resnet20-pruned"])
def test_loaded_has_the_same_tensors_and_description(saved, name):
    made = saved(name)
    loaded = architecture.load(str(made.folder))
    expected = made.model.state_dict()
    assert not loaded.training
    assert list(loaded.state_dict()) == list(expected)
    assert all(torch.equal(value, expected[key]) for key, value in loaded.state_dict().items())
    assert architecture.describe(made.folder) == made.described


def test_a_loaded_network_can_be_trained_on(saved):
    model = architecture.load(saved("vgg_small-pruned").folder).train()
    model(torch.randn(4, 1, 8, 8)).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())


def test_channels_last_weights_are_saved_whole(saved, tmp_path):
    made = saved("vgg_small-pruned")
    made.model.to(memory_format=torch.channels_last)
    architecture.save(made.folder, made.model, made.described)  # safetensors refuses strided tensors
    loaded = architecture.load(made.folder).state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in made.model.state_dict().items())


def test_no_pickle_in_the_folder(saved, monkeypatch):
    folder = saved("resnet20-pruned").folder
    assert sorted(path.name for path in folder.iterdir()) == ["architecture.json", "weights.safetensors"]
    described = json.loads((folder / "architecture.json").read_text())
    assert described["format"] == 1
    raw = (folder / "weights.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")  # of the JSON header; behind it there are only numbers
    header = json.loads(raw[8 : 8 + length])
    assert 8 + length + max(part["data_offsets"][1] for part in header.values()) == len(raw)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("unpickled")

    for reader in ("torch.load", "pickle.load", "pickle.loads", "pickle.Unpickler"):
        monkeypatch.setattr(reader, refuse)
    assert architecture.load(folder).linear.out_features == 10


# ---- what is refused


def change(folder: Path, **fields: object) -> None:
    """Write other fields into a saved description; None removes one."""
    path = folder / "architecture.json"
    described = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({key: value for key, value in described.items() if value is not None}))


@pytest.mark.parametrize("make", [True, False], ids=["empty", "missing"])
def test_a_folder_without_a_network(tmp_path, make):
    folder = tmp_path / "nothing"
    if make:
        folder.mkdir()
    with pytest.raises(
        UserError, match=r"nothing holds no architecture\.json: not a network saved by lpslim"
    ):
        architecture.load(folder)


@pytest.mark.parametrize("number", [0, 2, "1", None])
def test_another_format(saved, number):
    folder = saved("vgg_small-dense").folder
    change(folder, format=number)
    with pytest.raises(UserError, match=r"architecture\.json: not a network of format 1: format"):
        architecture.load(folder)


def test_weights_that_do_not_fit(saved):
    dense, pruned = saved("vgg_small-dense"), saved("vgg_small-pruned")
    (dense.folder / "weights.safetensors").write_bytes((pruned.folder / "weights.safetensors").read_bytes())
    fault = r"features\.0\.weight: \(1, 1, 3, 3\) in the file, \(32, 1, 3, 3\) in the network"
    with pytest.raises(UserError, match=f"does not fit architecture.json: {fault}"):
        architecture.load(dense.folder)


@pytest.mark.parametrize(
    ("change_to", "problem"),
    [("less", r"missing classifier\.bias"), ("more", "unexpected stranger")],
)
def test_weights_that_lack_or_add_a_tensor(saved, change_to, problem):
    folder = saved("vgg_small-dense").folder
    tensors = load_file(folder / "weights.safetensors")
    if change_to == "less":
        del tensors["classifier.bias"]
    else:
        tensors["stranger"] = torch.zeros(1)
    save_file(tensors, folder / "weights.safetensors")
    with pytest.raises(UserError, match=problem):
        architecture.load(folder)


def test_kept_units_that_the_network_does_not_have(saved):
    folder = saved("vgg_small-dense").folder
    change(folder, kept={"features.0": [0, 32]})
    with pytest.raises(UserError, match=r"'features\.0': kept units must be .* in 0\.\.31"):
        architecture.load(folder)


def test_a_family_outside_the_package(saved):
    folder = saved("vgg_small-dense").folder
    change(folder, family="os.path")
    with pytest.raises(
        UserError,
        match=r"models: 'os\.path' is not one of bert, resnet_cifar, resnet_imagenet, torchvision_zoo, vgg",
    ):
        architecture.load(folder)


def test_a_network_whose_modules_have_versions_loads_back(tmp_path):
    described = Architecture(
        "torchvision_zoo", "mnasnet0_5", (3, 32, 32), {"num_classes": 4, "in_channels": 3}
    )
    model = described.build().eval()
    architecture.save(tmp_path, model, described)
    for loaded in (architecture.load(tmp_path), architecture.load(tmp_path, model=described.build())):
        assert torch.equal(loaded(torch.ones(1, 3, 32, 32)), model(torch.ones(1, 3, 32, 32)))
