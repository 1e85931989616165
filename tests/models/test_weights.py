"""Pretrained weights: the wrappings that are understood, what does not fit, published ones."""

from argparse import Namespace
from hashlib import sha256

import pytest
import torch
from safetensors.torch import save_file

from lpslim.base.errors import UserError
from lpslim.models import family as families
from lpslim.models import weights
from lpslim.models.weights import IMAGENET, Published

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
    names = {"DEFAULT": "ResNet50_Weights.IMAGENET1K_V2", "public": "ResNet50_Weights.IMAGENET1K_V1"}
    for name, full in names.items():
        assert families.get("torchvision").weights_identity("resnet50", name) == full
    assert RESNETS.weights_identity("resnet20", "public") == "resnet20-12fca82f.th"


@pytest.mark.parametrize(
    ("family", "name", "choices"),
    [("resnet_cifar", "resnet20", "a file that exists, or one of public"),
     ("vgg", "vgg16", "a file that exists"),
     ("torchvision", "resnet18", "a file that exists, or one of IMAGENET1K_V1, DEFAULT, public")],
)  # fmt: skip
def test_an_unknown_source_is_refused_with_what_there_is(family, name, choices):
    with pytest.raises(UserError) as refused:
        families.get(family).weights_identity(name, "V9")
    assert str(refused.value) == f"model.weights=V9: must be {choices}"
    with pytest.raises(UserError, match=r"^model\.weights=V9: must be"):
        families.get(family).load_weights(torch.nn.Identity(), name, "V9")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Return torch.hub's folder of files, empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def published(model, tmp_path):
    """Publish a network's weights in a folder; return their entry and file."""
    (tmp_path / "site").mkdir()
    torch.save(model.state_dict(), tmp_path / "weights.th")
    content = (tmp_path / "weights.th").read_bytes()
    file = tmp_path / "site" / f"resnet20-{sha256(content).hexdigest()[:8]}.th"
    file.write_bytes(content)
    return Published(file.name, file.as_uri(), *IMAGENET), file


def test_published_weights_are_downloaded_once_or_taken_from_a_folder(model, published, hub, monkeypatch):
    entry, file = published
    monkeypatch.setattr(RESNETS, "published", lambda name: {"public": entry})
    assert entry.fetch(str(file.parent)) == file
    assert not hub.exists()
    other = RESNETS.build("resnet20", num_classes=7)
    misfit = rf"^model\.weights={file}: does not fit: linear.bias: \(10,\).*\(7,\)"
    with pytest.raises(UserError, match=misfit):
        RESNETS.load_weights(other, "resnet20", "public", str(file.parent))
    for _ in range(2):
        other = RESNETS.build("resnet20", num_classes=10)
        RESNETS.load_weights(other, "resnet20", "public")
        assert same(other.state_dict(), model.state_dict())
        assert [path.name for path in hub.iterdir()] == [file.name]
        file.unlink(missing_ok=True)


def refused(entry, folder=None):
    with pytest.raises(UserError) as refusal:
        entry.fetch(folder)
    return str(refusal.value)


def test_nothing_that_is_not_whole_is_taken_for_the_published_file(published, hub):
    entry, file = published
    file.write_bytes(file.read_bytes()[:-1])
    place = f"{entry.url} may be put into {hub} by hand"
    assert place in refused(entry)
    assert list(hub.iterdir()) == []
    (hub / file.name).write_bytes(file.read_bytes())
    assert refused(entry) == f"model.weights: {file.name} cannot be had (its SHA-256 is another); {place}"
    assert f"put into {file.parent} by hand" in refused(entry, str(file.parent))
    file.unlink()
    assert "No such file" in refused(entry, str(file.parent))
    assert not file.exists()
    # the hub out of reach
    url = "http://127.0.0.1:9/resnet20-12fca82f.th"
    told = refused(Published("resnet20", url, *IMAGENET))
    assert "resnet20-12fca82f.th cannot be had (" in told
    assert told.endswith(f"; {url} may be put into {hub} by hand")


@pytest.mark.parametrize("family", ["resnet_cifar", "torchvision"])
def test_every_published_file_tells_its_hash_and_its_normalisation(family):
    found = families.get(family)
    entries = [entry for name in found.names for entry in found.published(name).values()]
    assert all(len(weights.HASH.findall(entry.url.rpartition("/")[2])) == 1 for entry in entries)
    assert {len(part) for entry in entries for part in (entry.mean, entry.std)} == {3}


def test_public_weights_are_refused_where_none_are_known_with_the_networks_that_have_some():
    assert families.published("resnet_cifar", "resnet56", "public").mean == IMAGENET[0]
    assert families.published("vgg", "vgg16", None) is None
    assert families.published("vgg", "vgg16", "file.pth") is None
    known = r"^model\.weights=public: none known for vgg16; .*resnet20, .*resnet110 "
    with pytest.raises(UserError, match=known):
        families.published("vgg", "vgg16", "public")
