"""An exported network is the network, or there is no file."""

import subprocess
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
    path = tmp_path / "new" / "network.onnx"
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


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package(pruned, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"^{package} is not installed: pip install 'lpslim\[onnx\]'$"):
        onnx.to_onnx(pruned()[1], torch.zeros(1, 1, 8, 8), tmp_path / "network.onnx")
    assert not list(tmp_path.iterdir())


def test_the_command(pruned, tmp_path, capsys):
    architecture, model = pruned()
    storage.write(tmp_path / "pruned", model, architecture)
    command = [sys.executable, "-m", "lpslim.models.onnx", str(tmp_path / "pruned")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{tmp_path / 'pruned.onnx'}: ")
    folder_there = [str(tmp_path / "pruned"), "--output", str(tmp_path)]
    for words, message in ((folder_there, "error: "), ([str(tmp_path)], f"error: {tmp_path} holds no arch")):
        with pytest.raises(SystemExit, match="2"):
            onnx.main(words)
        assert capsys.readouterr().err.startswith(message)
