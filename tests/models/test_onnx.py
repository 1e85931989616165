"""An exported network is the network, and the latency table adds up; how fast anything is, is not tested."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import lpslim
from benchmarks import latency, pairs
from lpslim.base import registry
from lpslim.base.errors import UserError
from lpslim.models import onnx, storage
from lpslim.models.storage import Architecture
from lpslim.pruning import graph

ROOT = Path(__file__).parent.parent.parent
NETWORKS = {
    "vgg_small": Architecture("vgg", "vgg_small", (1, 8, 8), {"num_classes": 10, "in_channels": 1}),
    "resnet20": Architecture("resnet_cifar", "resnet20", (3, 32, 32), {"num_classes": 10}),
}


@pytest.fixture
def pruned(network, random_kept):
    """Build a pruned network, its description and an example."""

    def build(name):
        described = NETWORKS[name]
        example = torch.zeros(1, *described.input_shape)
        model = network(described.family, name, described.input_shape)
        prunables = lookup.find("models", described.family).prunable(model)
        kept = random_kept(surgery.find_units(model, example, prunables), seed=1)
        surgery.prune(model, example, kept)
        return model, replace(described, kept=kept), example

    return build


@pytest.fixture
def saved(pruned, tmp_path):
    """Save a pruned VGG as a run's folder does; return its folder."""
    model, described, _ = pruned("vgg_small")
    folder = tmp_path / "run" / "pruned"
    folder.mkdir(parents=True)
    architecture.save(folder, model, described)
    return folder


@pytest.fixture
def without_onnxruntime(monkeypatch):
    """Make the package impossible to import."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)


def change(model):
    """Turn the sign of one weight of the last layer."""
    with torch.no_grad():
        list(model.parameters())[-2][0, 0].mul_(-1)


# ---- the file


@pytest.mark.parametrize("name", NETWORKS)
def test_a_pruned_network_agrees_at_any_batch_size(pruned, tmp_path, name):
    model, _, example = pruned(name)
    path = tmp_path / "new" / "network.onnx"
    difference = export.to_onnx(model, example, path)
    agreement = export.compare(model, example, path)
    assert agreement.holds
    assert 0 <= difference <= export.TOLERANCE * agreement.scale
    session = export.session(path, threads=1)
    assert [(each.name, each.shape[0]) for each in session.get_inputs()] == [("input", "batch")]
    assert [(each.name, each.shape) for each in session.get_outputs()] == [("logits", ["batch", 10])]
    images = torch.randn(5, *example.shape[1:])
    with torch.no_grad():
        expected = model(images)
    assert expected.std() > 1e-2
    torch.testing.assert_close(export.logits(session, images), expected, rtol=1e-4, atol=1e-4)


def test_evaluation_mode_is_exported_and_the_model_keeps_its_own(pruned, tmp_path):
    model, _, example = pruned("vgg_small")
    export.write(model, example, tmp_path / "evaluating.onnx")
    model.train()
    statistics = [buffer.clone() for buffer in model.buffers()]
    export.write(model, example, tmp_path / "training.onnx")
    assert export.compare(model, example, tmp_path / "training.onnx").holds
    assert all(module.training for module in model.modules())
    assert all(torch.equal(old, new) for old, new in zip(statistics, model.buffers(), strict=True))
    assert (tmp_path / "training.onnx").read_bytes() == (tmp_path / "evaluating.onnx").read_bytes()


def test_another_network_is_reported_as_different(pruned, tmp_path):
    model, _, example = pruned("vgg_small")
    export.write(model, example, tmp_path / "network.onnx")
    change(model)
    agreement = export.compare(model, example, tmp_path / "network.onnx")
    assert agreement.difference > export.TOLERANCE * agreement.scale
    assert not agreement.holds


@pytest.mark.parametrize(
    ("difference", "scale", "holds"),
    [(4e-4, 5.0, True), (6e-4, 5.0, False), (0.0, 0.0, True), (float("nan"), 5.0, False)],
)
def test_the_tolerance_is_relative_to_the_logits(difference, scale, holds):
    assert export.Agreement(difference, scale).holds is holds


def test_a_failed_export_leaves_the_old_file_and_nothing_else(pruned, tmp_path, monkeypatch):
    model, _, example = pruned("vgg_small")
    path = tmp_path / "network.onnx"
    path.write_text("old")

    def fail(*arguments, **_):
        Path(arguments[2]).write_text("half a file")
        raise RuntimeError("no room")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(RuntimeError, match="no room"):
        export.write(model, example, path)
    assert [each.name for each in tmp_path.iterdir()] == ["network.onnx"]
    assert path.read_text() == "old"


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package(pruned, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    model, _, example = pruned("vgg_small")
    with pytest.raises(UserError, match=rf"^{package} is not installed: pip install 'lpslim\[onnx\]'$"):
        export.to_onnx(model, example, tmp_path / "network.onnx")
    assert not list(tmp_path.iterdir())


# ---- the command


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "lpslim.models.onnx", *map(str, arguments)], capture_output=True, text=True
    )


def test_the_command_writes_beside_the_folder_and_says_only_what_matters(saved):
    done = command(saved)
    path = saved.parent / "pruned.onnx"
    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.splitlines()
    assert first == f"{path}: {path.stat().st_size / 1e6:.2f} MB"
    assert second.startswith("max difference from PyTorch: ")
    assert sorted(each.name for each in saved.iterdir()) == ["architecture.json", "weights.safetensors"]


def test_the_command_refuses_what_is_no_network(tmp_path):
    done = command(tmp_path, "--output", tmp_path / "network.onnx")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {tmp_path} holds no architecture.json: not a network saved by lpslim\n"


class Own(nn.Module):
    """A network that lpslim cannot build."""

    def __init__(self):
        super().__init__()
        self.first, self.out = nn.Conv2d(1, 8, 3), nn.Linear(8, 3)

    def forward(self, x):
        return self.out(torch.relu(self.first(x)).mean((2, 3)))


@pytest.fixture
def own(tmp_path):
    """Prune and save a network that lpslim cannot build; return original, pruned, example and folder."""
    model, example = Own().eval(), torch.zeros(1, 1, 8, 8)
    pruned = lpslim.prune(model, example, ratio=0.5)
    lpslim.save(tmp_path / "smaller", pruned)
    return model, pruned, example, tmp_path / "smaller"


def test_the_command_says_how_ones_own_network_is_exported(own, capsys):
    model, pruned, example, folder = own
    assert export.main([str(folder)]) == 2
    assert capsys.readouterr().err == (
        f"error: {folder}: Own is a network of your own, and this command cannot build it; from Python: "
        f"lpslim.models.onnx.to_onnx(lpslim.load({str(folder)!r}, model=<the dense one>), <an image>, <file>)\n"
    )
    path = folder.parent / "smaller.onnx"
    assert not path.exists()
    export.to_onnx(lpslim.load(str(folder), model=model), example, path)
    assert export.compare(pruned.model, example, path).holds


def test_the_command_writes_where_it_is_told(saved, tmp_path, capsys):
    assert export.main([str(saved), "--output", str(tmp_path / "here.onnx")]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'here.onnx'}: ")
    assert not (saved.parent / "pruned.onnx").exists()


def test_the_command_cannot_write_over_a_folder(saved, tmp_path, capsys):
    assert export.main([str(saved), "--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_the_command_fails_when_the_file_is_another_network(saved, monkeypatch, capsys):
    write = export.write

    def write_another(model, example, path):
        change(other := architecture.load(saved))
        write(other, example, path)

    monkeypatch.setattr(export, "write", write_another)
    assert export.main([str(saved)]) == 1
    assert "pruned.onnx is wrong: more than 0.0001 of the largest logit off" in capsys.readouterr().err


@pytest.mark.usefixtures("without_onnxruntime")
def test_the_command_names_the_missing_package(saved, capsys):
    assert export.main([str(saved)]) == 2
    assert capsys.readouterr().err == "error: onnxruntime is not installed: pip install 'lpslim[onnx]'\n"


# ---- the latency table


def test_speed_up_and_share_are_those_of_the_rounds():
    found = pairs.row("engine", 32, [(0.009, 0.003), (0.008, 0.004), (0.010, 0.004)], flops_ratio=4.0)
    dense, pruned, faster = found.dense_ms, found.pruned_ms, found.speed_up
    assert (dense.median, dense.low, dense.high, dense.rounds) == pytest.approx((9.0, 8.5, 9.5, 3))  # ms
    assert (pruned.median, pruned.low, pruned.high) == pytest.approx((4.0, 3.5, 4.0))
    assert (faster.median, faster.low, faster.high) == pytest.approx((2.5, 2.25, 2.75))  # paired, not 9 / 4
    assert (found.speed_up.median, found.share) == pytest.approx((2.5, 2.5 / 4))
    assert str(found).split() == [
        *("engine", "32", "9.00", "(8.50-9.50)", "4.00", "(3.50-4.00)"),
        *("2.50", "(2.25-2.75)", "4.00", "0.62"),
    ]


def test_calls_take_turns(monkeypatch):
    monkeypatch.setattr(pairs, "ROUND", 0.0)
    calls = []
    found = pairs.measure((lambda: calls.append("dense"), lambda: calls.append("pruned")), rounds=4)
    assert calls == ["dense", "pruned"] * (3 + 4)  # three to warm up, then one pair a round
    assert len(found) == 4


def test_the_original_is_rebuilt_from_the_description(saved):
    networks = latency.load(saved.parent, None)  # the run's folder
    assert networks.dense.features[0].weight.shape == (32, 1, 3, 3)
    assert networks.pruned.features[0].weight.shape == (1, 1, 3, 3)
    assert networks.flops_ratio == networks.dense_cost.macs / networks.pruned_cost.macs > 1
    assert not networks.dense.training
    assert not networks.pruned.training
    assert latency.load(saved, saved).flops_ratio == 1


def test_the_example_is_cut_to_half():
    networks = latency.load(None, None)
    widths = [each.out_channels for each in networks.pruned.features if isinstance(each, nn.Conv2d)]
    assert widths == [32, 32, 64, 64, *[128] * 3, *[256] * 6]
    assert 3.9 < networks.flops_ratio < 4  # the first layer keeps its three inputs, the last its ten outputs


@pytest.fixture
def quick(monkeypatch):
    """One pair of calls in a round, and the process's threads as they were afterwards."""
    monkeypatch.setattr(pairs, "ROUND", 0.0)
    threads = torch.get_num_threads()
    yield ["--threads", "1", "--batches", "1", "2", "--rounds", "2"]
    torch.set_num_threads(threads)


def test_the_benchmark_measures_both_engines(saved, tmp_path, quick, capsys):
    assert latency.main([str(saved), "--json", str(tmp_path / "latency.json"), *quick]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "2 rounds" in lines[0]
    assert "1 threads" in lines[1]
    assert [line.split()[0] for line in lines[2:]] == ["engine", "PyTorch", "PyTorch", "ONNX", "ONNX"]
    measured = json.loads((tmp_path / "latency.json").read_text())
    assert [(each["engine"], each["batch"]) for each in measured["rows"]] == [
        *(("PyTorch", 1), ("PyTorch", 2), ("ONNX Runtime", 1), ("ONNX Runtime", 2))
    ]
    ratio = measured["cost"]["dense"]["macs"] / measured["cost"]["pruned"]["macs"]
    for each in measured["rows"]:
        assert each["speed_up"]["rounds"] == 2
        assert each["share"] == pytest.approx(each["speed_up"]["median"] / ratio)
    assert (measured["machine"]["threads"], measured["note"]) == (1, "")


def test_ones_own_networks_are_measured_from_python(own, quick, capsys):
    model, pruned, example, folder = own
    given = copy.deepcopy(model).train()
    rows = latency.compare(given, pruned.model, example, batches=(1, 2), rounds=2, threads=1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Own: inputs of (1, 8, 8), 2 rounds"
    assert [line.split()[0] for line in lines[2:]] == ["engine", "PyTorch", "PyTorch", "ONNX", "ONNX"]
    assert lines[3:] == [str(each) for each in rows]
    assert rows[0].flops_ratio == pruned.dense.macs / pruned.pruned.macs
    assert given.training
    assert all(each.is_contiguous() for each in given.parameters())

    assert latency.main([str(folder), *quick]) == 2
    assert capsys.readouterr().err == (
        f"error: {folder}: Own is a network of your own, and this command cannot build it; from Python: "
        "benchmarks.latency.compare(<the dense one>, <the pruned one>, <an image>)\n"
    )


@pytest.mark.usefixtures("without_onnxruntime")
def test_without_onnx_runtime_the_other_half_is_measured(saved, quick, capsys):
    assert latency.main([str(saved), *quick]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:-1]] == ["engine", "PyTorch", "PyTorch"]
    missing = "onnxruntime is not installed: pip install 'lpslim[onnx]'"
    assert lines[-1] == f"ONNX Runtime: not measured: {missing}"


def test_originals_of_other_images_are_refused(saved, network, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    described = NETWORKS["resnet20"]
    architecture.save(other, network(described.family, "resnet20", (3, 32, 32)), described)
    assert latency.main([str(saved), "--dense", str(other)]) == 2
    assert "takes inputs of (3, 32, 32), not (1, 8, 8)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dense", "somewhere"], "--dense needs a network"),
        (["--threads", "0"], "'0' is not a positive whole number"),
        (["--batches", "1", "many"], "'many' is not a positive whole number"),
    ],
)
def test_what_the_benchmark_refuses(capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        latency.main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_make_latency_needs_a_network():
    make = ["make", "--old-file=setup", "latency", "NETWORK="]  # as if the environment were set up
    done = subprocess.run(make, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(
        "NETWORK is not set: make latency NETWORK=outputs/runs/<name>/<key>/pruned\n"
    )


# ---- texts


@pytest.fixture
def encoder(tmp_path):
    """Save a small encoder without half of its heads and neurons; return its folder."""
    arguments = {"num_classes": 2, "configuration": lookup.find("models", "bert").configuration("tiny")}
    dense = Architecture("bert", "tiny", (3, 24), arguments)
    kept = {each.layer: list(range(each.size // 2)) for each in dense.units(dense.build())}
    folder = tmp_path / "encoder"
    folder.mkdir()
    described = replace(dense, kept=kept)
    architecture.save(folder, described.build(), described)
    return folder


def test_an_encoder_of_texts_agrees_at_any_length_and_with_padding(encoder, capsys):
    assert export.main([str(encoder)]) == 0
    assert "max difference from PyTorch" in capsys.readouterr().out
    session = export.session(encoder.parent / "encoder.onnx", 1)
    model = architecture.load(encoder)
    for length in (2, 5, 24):
        texts = torch.randint(5, 50, (2, 3, length))
        texts[:, 1], texts[:, 2] = 1, 0
        texts[1, :, length // 2 :] = 0
        assert (export.logits(session, texts) - model(texts)).abs().max() < 1e-5


def test_a_padded_text_is_among_what_is_compared():
    batch = export.samples(torch.ones(1, 3, 24, dtype=torch.long), 3, torch.Generator())
    assert batch.shape == (3, 3, 8)
    assert batch[:, 1].sum(dim=1).tolist() == [4, 8, 8]


def test_latency_of_an_encoder(encoder):
    networks = latency.load(encoder, None)
    assert networks.shape == (3, 24)
    assert pairs.inputs(networks.shape, 4).shape == (4, 3, 24)
    assert networks.flops_ratio > 1.5
