"""An exported network is the network, or there is no file."""

import copy
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from lpslim.base.errors import UserError
from lpslim.base.modules import example_input
from lpslim.models import onnx, storage


@pytest.mark.parametrize(
    "name", [("resnet_cifar", "resnet20", (3, 32, 32)), ("torchvision", "mobilenet_v3_small", (3, 64, 64))]
)
def test_a_pruned_network_agrees_at_any_batch_size(pruned, tmp_path, name):
    _, model = pruned(*name)
    path = tmp_path / "network.onnx"
    difference = onnx.to_onnx(model, torch.zeros(1, *name[2]), path)
    session = onnx.session(path, threads=1)
    assert [(tensor.name, tensor.shape[0]) for tensor in session.get_inputs()] == [("input", "batch")]
    assert [(tensor.name, tensor.shape) for tensor in session.get_outputs()] == [("logits", ["batch", 10])]
    images = torch.randn(5, *name[2])
    expected = model(images).detach()
    assert expected.std() > 1e-2
    assert 0 <= difference < 1e-3 * expected.abs().max()
    torch.testing.assert_close(onnx.logits(session, images), expected, rtol=1e-4, atol=1e-4)


def test_an_encoder_agrees_at_any_length_and_with_padding(tmp_path):
    dense = storage.dense("bert", "tiny", (3, 24), 2)
    kept = {unit.layer: list(range(unit.size // 2)) for unit in dense.units(dense.build())}
    model = replace(dense, kept=kept).build().eval()
    onnx.to_onnx(model, example_input((3, 24)), tmp_path / "encoder.onnx")
    session = onnx.session(tmp_path / "encoder.onnx", 1)
    for length in (2, 5, 24):
        texts = torch.randint(5, 50, (2, 3, length))
        texts[:, 1], texts[:, 2] = 1, 0
        texts[1, :, length // 2 :] = 0
        assert (onnx.logits(session, texts) - model(texts)).abs().max() < 1e-5


def test_evaluation_mode_is_exported_and_the_model_keeps_its_own(pruned, tmp_path):
    _, model = pruned()
    onnx.to_onnx(model, torch.zeros(1, 1, 8, 8), tmp_path / "evaluating.onnx")
    model.train()
    before = [buffer.clone() for buffer in model.buffers()]
    onnx.to_onnx(model, torch.zeros(1, 1, 8, 8), tmp_path / "training.onnx")
    assert all(module.training for module in model.modules())
    assert all(torch.equal(old, new) for old, new in zip(before, model.buffers(), strict=True))
    assert (tmp_path / "training.onnx").read_bytes() == (tmp_path / "evaluating.onnx").read_bytes()


class Frozen(nn.Module):
    """Its trace holds the example's batch size as a number."""

    def forward(self, x):
        return x.mean((2, 3)) * len(x)


def test_another_network_in_the_file_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "network.onnx"
    path.write_text("old")
    with pytest.raises(UserError, match=r"not written: the exported Frozen differs from PyTorch by "):
        onnx.to_onnx(Frozen(), torch.zeros(1, 2, 4, 4), path)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("network.onnx", "old")]


class Several(nn.Module):
    """An image and a vector become two outputs, in one of several forms."""

    def __init__(self, form):
        super().__init__()
        self.form, self.first, self.key = form, nn.Conv2d(3, 8, 3, padding=1), nn.Linear(5, 8)

    def forward(self, image, z):
        gated = self.first(image).relu() * self.key(z.to(image.dtype)).sigmoid()[..., None, None]
        return self.form(gated.mean((2, 3)), gated.amax((2, 3)))


FORMS = {
    "one": (lambda a, b: a + b, ["logits"]),
    "tuple": (lambda a, b: (a, b), ["logits0", "logits1"]),
    "dict": (lambda a, b: {"mean": a, "most": b}, ["mean", "most"]),
    "nested": (lambda a, b: {"both": [a, b], "none": None}, ["both0", "both1"]),
}


@pytest.mark.parametrize(
    ("form", "keyword", "whole"),
    [("one", False, False), ("tuple", True, False), ("dict", False, True), ("nested", True, True)],
)
def test_several_inputs_and_outputs_have_names_and_agree(form, keyword, whole, tmp_path):
    torch.manual_seed(0)
    make, outputs = FORMS[form]
    model, image = Several(make), torch.randn(2, 3, 8, 8)
    vector = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]]) if whole else torch.randn(2, 5)
    example = {"z": vector[:1], "image": image[:1]} if keyword else (image[:1], vector[:1])
    assert onnx.to_onnx(model, example, tmp_path / "a.onnx") < 1e-5
    session = onnx.session(tmp_path / "a.onnx", 1)
    inputs = {"z": vector, "image": image} if keyword else {"input0": image, "input1": vector}
    assert [tensor.name for tensor in session.get_inputs()] == [*inputs]
    assert [tensor.name for tensor in session.get_outputs()] == outputs
    made = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    with torch.no_grad():
        model.form = lambda *both: both
        pair = model(image, vector)
    expected = [pair[0] + pair[1]] if form == "one" else pair
    for ours, theirs in zip(made, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(ours), theirs, rtol=1e-4, atol=1e-5)


class Masked(nn.Module):
    """Attention over a sequence of vectors, whose second output is masked."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.norm = nn.BatchNorm1d(8)
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf] * 4))

    def forward(self, x):
        y = self.norm(self.layer(x).mean(1))
        return y, y + self.mask


def test_fused_attention_and_masked_outputs_agree_and_no_statistics_change(tmp_path):
    torch.manual_seed(0)
    model = Masked().eval()
    model.norm.running_mean.normal_()
    before = copy.deepcopy(model.state_dict())
    assert onnx.to_onnx(model, torch.randn(1, 5, 8), tmp_path / "a.onnx") < 1e-5
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def convolution(dtype):
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten()).to(dtype)
    return model, torch.zeros(1, 2, 5, 5, dtype=dtype)


def linear(dtype):
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype), torch.zeros(1, 6).to(dtype)


@pytest.mark.parametrize(
    ("make", "dtype", "written"),
    [(convolution, torch.float16, True), (linear, torch.float64, True),
     (convolution, torch.float64, False), (convolution, torch.bfloat16, False),
     (linear, torch.bfloat16, False)],
)  # fmt: skip
def test_another_precision_agrees_or_is_refused_with_a_way_out(make, dtype, written, tmp_path):
    torch.manual_seed(0)
    model, example = make(dtype)
    path = tmp_path / "a.onnx"
    if written:
        assert onnx.to_onnx(model, example, path) < 40 * torch.finfo(dtype).eps
        inputs = torch.randn(2, *example.shape[1:]).to(dtype)
        made, expected = onnx.logits(onnx.session(path, 1), inputs), model(inputs).detach()
        assert made.dtype == dtype
        torch.testing.assert_close(made, expected, rtol=0, atol=40 * torch.finfo(dtype).eps)
    else:
        said = r"a\.onnx: not written: Sequential cannot be exported \("
        with pytest.raises(UserError, match=said) as refused:
            onnx.to_onnx(model, example, path)
        assert str(refused.value).endswith("; export model.float() with a float32 example")
        assert "\n" not in str(refused.value)
        assert list(tmp_path.iterdir()) == []
        assert onnx.to_onnx(model.float(), example.float(), path) < 1e-5


@pytest.mark.parametrize(
    ("example", "folder", "said"),
    [(torch.zeros(1, 6), "nowhere", "there is no folder "),
     (torch.zeros(1, 7), "", "cannot be exported (RuntimeError: "),
     ((torch.zeros(1, 6), 3), "", "the example must be a tensor, or a tuple or dict of tensors")],
)  # fmt: skip
def test_what_cannot_be_written_is_refused_and_leaves_nothing(example, folder, said, tmp_path):
    with pytest.raises(UserError) as refused:
        onnx.to_onnx(linear(torch.float32)[0], example, tmp_path / folder / "a.onnx")
    assert said in str(refused.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package(pruned, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"^{package} is not installed: pip install 'lpslim\[onnx\]'$"):
        onnx.to_onnx(pruned()[1], torch.zeros(1, 1, 8, 8), tmp_path / "network.onnx")
    assert not list(tmp_path.iterdir())


def test_the_command(pruned, tmp_path, capsys):
    architecture, model = pruned()
    storage.write(tmp_path / "pruned", model, architecture)
    onnx.main([str(tmp_path / "pruned")])
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'pruned.onnx'}: ")
    folder_there = [str(tmp_path / "pruned"), "--output", str(tmp_path)]
    nothing = f"error: {tmp_path} holds no architecture.json"
    for words, message in ((folder_there, "error: "), ([str(tmp_path)], nothing)):
        with pytest.raises(SystemExit, match="2"):
            onnx.main(words)
        assert capsys.readouterr().err.startswith(message)
