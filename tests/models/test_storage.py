"""A saved network comes back, bit for bit, in a process that knows nothing of how it was made."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import lpslim
from lpslim.base.errors import UserError
from lpslim.models import storage

NETWORKS = {
    "vgg_small": ("vgg", (1, 8, 8)),
    "resnet20": ("resnet_cifar", (3, 32, 32)),
    "mnasnet0_5": ("torchvision", (3, 32, 32)),  # its modules have versions
}
ELSEWHERE = """
import sys, torch, lpslim
from safetensors.torch import load_file, save_file
torch.set_num_threads(int(sys.argv[1]))  # the order of a sum may depend on it
for folder in sys.argv[2:]:
    with torch.no_grad():
        logits = lpslim.load(folder)(load_file(f"{folder}.images")["images"])
    save_file({"logits": logits}, f"{folder}.logits")
print([name for name in sys.modules if name.startswith(("lpslim.experiment", "lpslim.training", "hydra"))])
"""


def test_same_logits_in_another_process(pruned, tmp_path):
    made = {}
    for name, (family, shape) in NETWORKS.items():
        architecture, model = pruned(family, name, shape)
        storage.write(tmp_path / name, model, architecture)
        assert storage.describe(tmp_path / name) == architecture
        images = torch.randn(3, *shape, generator=torch.Generator().manual_seed(5))
        save_file({"images": images}, tmp_path / f"{name}.images")
        made[str(tmp_path / name)] = model(images).detach()
    words = [sys.executable, "-c", ELSEWHERE, str(torch.get_num_threads()), *made]
    # far from conf/ and from the sources
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
    for folder, expected in made.items():
        assert expected.std() > 0
        assert torch.equal(load_file(f"{folder}.logits")["logits"], expected), folder


def test_a_loaded_network_has_the_same_tensors_and_can_be_trained_on(pruned, tmp_path):
    architecture, model = pruned()
    model.to(memory_format=torch.channels_last)  # safetensors refuse strided tensors
    storage.write(tmp_path, model, architecture)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["architecture.json", "weights.safetensors"]
    loaded, expected = storage.load(str(tmp_path)), model.state_dict()
    assert not loaded.training
    assert list(loaded.state_dict()) == list(expected)
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
    loaded.train()(torch.randn(4, 1, 8, 8)).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in loaded.parameters())


class Tied(nn.Module):
    """A network that lpslim cannot build: two layers with one weight, and a frozen one."""

    def __init__(self):
        super().__init__()
        self.first, self.one, self.other = nn.Conv2d(1, 8, 3), nn.Linear(8, 8), nn.Linear(8, 8)
        self.out = nn.Linear(16, 3)
        self.other.weight = self.one.weight
        self.last = nn.Conv2d(8, 16, 1).requires_grad_(False)

    def forward(self, x):
        x = torch.relu(self.first(x)).mean((2, 3))
        x = self.other(torch.relu(self.one(x)))
        return self.out(torch.relu(self.last(x[:, :, None, None])).mean((2, 3)))


def full(*_):
    raise OSError("disk full")


def test_a_network_of_ones_own_keeps_its_tied_and_frozen_weights(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model, example = Tied().eval(), torch.randn(2, 1, 8, 8)
    pruned = lpslim.prune(model, example[:1], ratio=0.5)
    assert pruned.kept.keys() == {"last"}
    assert pruned.left_alone["one"] == "'one' and 'other' have one weight"
    with monkeypatch.context() as patch:
        patch.setattr(storage, "save_file", full)
        with pytest.raises(OSError, match="disk full"):
            lpslim.save(tmp_path / "own", pruned)
    lpslim.save(tmp_path / "own", pruned)  # what failed has left no network
    dense = Tied()
    loaded = lpslim.load(tmp_path / "own", model=dense)
    assert torch.equal(loaded(example), pruned.model(example))
    assert loaded.one.weight is loaded.other.weight
    assert [p.requires_grad for p in loaded.last.parameters()] == [False, False]
    assert dense.last.out_channels == 16  # it was copied
    with pytest.raises(UserError, match=r"Tied is not a network of lpslim: load\(folder, model=<the dense"):
        lpslim.load(tmp_path / "own")
    with pytest.raises(FileExistsError, match="holds a network already"):
        lpslim.save(tmp_path / "own", pruned)
    with pytest.raises(UserError, match="'last'"):
        lpslim.load(tmp_path / "own", model=nn.Sequential(nn.Conv2d(1, 2, 1)))


class Recurrent(nn.Module):
    """Sequences of given lengths: those of no length are refused by torch."""

    def __init__(self):
        super().__init__()
        self.r, self.a, self.f = nn.LSTM(4, 4, batch_first=True), nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths.long(), batch_first=True, enforce_sorted=False)
        return self.f(torch.relu(self.a(self.r(packed)[1][0][0])))


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        (torch.int64, "on inputs of zeros, .* cannot be traced"),
        (torch.int16, "'1' .* the type int16, not one of"),
    ],
)
def test_what_could_not_be_loaded_again_is_not_saved(dtype, message, tmp_path):
    example = torch.randn(2, 5, 4), torch.tensor([5, 3], dtype=dtype)
    pruned = lpslim.prune(Recurrent(), example, ratio=0.5)
    with pytest.raises(UserError, match=message):
        lpslim.save(tmp_path / "own", pruned)
    assert not (tmp_path / "own").exists()


class Chain(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.out = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 6, 3), nn.Linear(6, 3)

    def forward(self, x):
        return self.out(torch.relu(self.two(torch.relu(self.one(x)))).mean((2, 3)))


def test_a_network_of_a_network_that_was_pruned_needs_that_one(tmp_path):
    torch.manual_seed(0)
    dense, example = Chain().eval(), torch.randn(2, 1, 8, 8)
    first = lpslim.prune(dense, example[:1], ratio=0.5, protected=["two"])
    apart = lpslim.prune(first.model, example[:1], ratio=0.5, protected=["one"])
    again = lpslim.prune(first.model, example[:1], ratio=0.5)
    for name, second in (("apart", apart), ("again", again)):
        lpslim.save(tmp_path / name, second)
        assert torch.equal(lpslim.load(tmp_path / name, model=first.model)(example), second.model(example))
    hint = r"one\.weight: \(4, 1, 3, 3\) .* \(8, 1, 3, 3\) .* itself pruned, give that"
    with pytest.raises(UserError, match=hint):
        lpslim.load(tmp_path / "apart", model=dense)
    # the second choice tells every width
    assert torch.equal(lpslim.load(tmp_path / "again", model=dense)(example), again.model(example))


@pytest.mark.parametrize(
    ("stored", "given"),
    [(torch.float16, torch.float32), (torch.float32, torch.bfloat16), (torch.bfloat16, torch.float64),
     (torch.float64, torch.float16)],
)  # fmt: skip
def test_a_network_comes_back_in_the_precision_of_the_given_one(stored, given, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.manual_seed(0)
    dense, image = Chain().to(stored).eval(), torch.randn(2, 1, 8, 8)
    pruned = lpslim.prune(dense, image[:1].to(stored), ratio=0.5)
    lpslim.save("~/made", pruned)
    loaded = lpslim.load("~/made", model=Chain().to(given))
    assert {path.name for path in (tmp_path / "made").iterdir()} == {storage.DESCRIPTION, storage.WEIGHTS}
    expected = pruned.model.to(given)
    assert {value.dtype for value in loaded.state_dict().values()} == {given}
    assert torch.equal(loaded(image.to(given)), expected(image.to(given)))


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleDict({"x:y": nn.Conv2d(1, 8, 3), "z": nn.Conv2d(8, 3, 3)})

    def forward(self, image):
        return self.parts["z"](torch.relu(self.parts["x:y"](image)))


def test_names_with_a_colon_are_those_of_layers_too(tmp_path):
    torch.manual_seed(0)
    wrapped = Named()
    pruned = lpslim.prune(wrapped, torch.zeros(1, 1, 8, 8), ratio=0.5)
    assert pruned.kept.keys() == {"parts.x:y"}
    lpslim.save(tmp_path / "own", pruned)
    image = torch.randn(2, 1, 8, 8)
    assert torch.equal(lpslim.load(tmp_path / "own", model=wrapped)(image), pruned.model.eval()(image))
