"""Runner: what is refused before any work, what a run leaves, and how it tells that it could not go on."""

import errno
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

import lpslim
from lpslim.base import files
from lpslim.base.errors import RunError, UserError
from lpslim.experiment import records, runner, stages
from lpslim.experiment.runner import execute
from lpslim.pruning.cost import count
from lpslim.training import distributed
from tests.composing import configured
from tests.experiment.dying import TINY, places

BUDGET = "target_flops=0.5"


@pytest.fixture(scope="module")
def finished(run, tmp_path_factory):
    return run(BUDGET, work=tmp_path_factory.mktemp("finished"))


@pytest.fixture
def unrecorded(finished, tmp_path):
    """A folder in which all stages of a run are finished, without its record."""
    shutil.copytree(finished.path.parents[3], tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "results")
    return tmp_path


def test_a_run_leaves_a_record_and_a_folder_and_a_second_does_nothing(run, finished, capsys, monkeypatch):
    record, place = finished.record, finished.path.parents[3]
    folder = place / "outputs" / "runs" / "adhoc" / record.key[:8]
    assert list(record.stages) == ["baseline", "sparsify", "score", "prune", "finetune"]
    assert abs(record.cost.flops_drop - 50) <= 0.3
    assert record.data.train + record.data.val + record.data.test == 1797
    assert str(place) not in finished.path.read_text()  # no place on this machine
    assert json.loads((folder / "config.json").read_text())["target_flops"] == 0.5
    assert (folder / "run.log").read_text().count("epoch 1/1") == 3
    columns = "iteration,epoch,primal,dual,sparsity,capped\n1"
    assert (folder / "convergence.csv").read_text().startswith(columns)
    network = count(lpslim.load(folder / "pruned"), torch.zeros(1, 1, 8, 8))
    assert (network.macs, network.params) == (record.cost.pruned.macs, record.cost.pruned.params)
    monkeypatch.setattr(stages, "obtain", lambda *_: pytest.fail("a stage was looked for"))
    assert run(BUDGET, work=place).path == finished.path
    assert "measured before" in capsys.readouterr().out


def test_a_dry_run_prints_the_plan_and_does_nothing(tmp_path, capsys):
    words = ("model=vgg_small", "dataset=digits", "dry_run=true", "trainer.threads=1")
    assert execute(configured(*words, *places(tmp_path)), None) is None
    title, *stages, total = capsys.readouterr().out.splitlines()
    assert (title, total) == ("adhoc, seed 0:", "  0 stages found, 5 to do: 46 epochs")
    assert [re.sub(" +[0-9a-f]{16}", "", line).strip() for line in stages] == [
        "baseline  to do  30 epochs", "sparsify  to do  6 epochs", "score  to do", "prune  to do",
        "finetune  to do  10 epochs",
    ]  # fmt: skip
    assert not (tmp_path / "results").exists()
    assert not (tmp_path / "outputs" / "stages").exists()


@pytest.mark.parametrize(("flags", "warned"), [("avx2", True), ("avx2 avx512_bf16", False)])
def test_the_plan_says_where_bf16_is_slow(flags, warned, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(distributed, "CPU_INFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(f"flags\t\t: {flags}\n")
    words = ("model=vgg_small", "dataset=digits", "dry_run=true", "trainer.device=cpu")
    execute(configured("trainer.precision=bf16", *words, *places(tmp_path)), None)
    assert ("trainer.precision=fp32 is far faster" in capsys.readouterr().out) == warned


ZOO = ("model=torchvision", "dataset=digits32")
TEXT = ("model=bert_tiny", "dataset=toy_text")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ((*ZOO, "model.name=mobilenet_v3_small", "method=slimming"), ("criterion=bn_scale", "norm")),
        ((*ZOO, "model.name=squeezenet1_1", "regularizer=bn_l1"), ("norm",)),
        (("protected=[nowhere]",), ("protected=nowhere", "features.0")),
        (("granularity=weights", "target_params=67e6"), ("target_params=6.7e+07", "must be below")),
        (("target_flops=0.96", "round_to=64"), ("target_flops=0.96", "must be at most 0.2482")),
        (("model=resnet20", "target_params=10"), ("target_params=10", "must be at least")),
        (("target_params=1e9",), ("target_params=1e+09", "must be below")),
        ((*TEXT, "dataset.max_length=99"), ("dataset.max_length=99: must be at most 64", "model.name=tiny")),
        ((*TEXT, "criterion=chip"), ("criterion=chip",)),
    ],
)
def test_what_the_network_cannot_do_is_refused_before_any_work(run, tmp_path, words, parts):
    with pytest.raises(UserError) as refused:
        run(*words, work=tmp_path)
    assert all(part in str(refused.value) for part in parts), refused.value
    assert not (tmp_path / "outputs" / "stages").exists()


@pytest.mark.parametrize("key", ["results_dir", "work_dir"])
def test_a_folder_that_cannot_be_written_is_refused_before_any_work(run, tmp_path, key):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=re.escape(f"{key}={tmp_path}/file/inside")):
        run(f"{key}={tmp_path}/file/inside", work=tmp_path)
    assert not (tmp_path / "outputs" / "stages").exists()


def test_a_record_tells_how_a_run_departs_from_its_experiment_file(run):
    file, elsewhere = configured(*TINY, BUDGET), ("seed=2", "protocol=val", "trainer.channels_last=false")
    assert run(BUDGET, *elsewhere, file=file).record.differs == {}
    assert run("regularizer=none", file=configured(*TINY, "regularizer=none", "p=3")).record.differs == {}
    changed = run("ratio=0.4", "dataset.flip=true", file=file).record.differs
    assert changed == {"target_flops": [0.5, None], "ratio": [0.5, 0.4], "dataset.flip": [False, True]}


def test_a_loss_that_is_not_finite_is_recorded(run, tmp_path, caplog, capsys):
    caplog.set_level("CRITICAL")
    words = (BUDGET, "finetune.lr=1e30", "trainer.checkpoint_minutes=0")
    for _ in range(2):  # the second reads the record
        with pytest.raises(RunError, match="diverged in finetune, epoch 1, step 2: loss nan"):
            run(*words, work=tmp_path)
    (record,) = records.read_all(tmp_path / "results")
    assert record.diverged == records.Divergence(stage="finetune", epoch=1, step=2, loss="nan")
    assert set(record.accuracy) == {"baseline", "sparsify", "prune"}
    assert abs(record.cost.flops_drop - 50) <= 0.3
    finetune = tmp_path / "outputs" / "stages" / "finetune"
    assert [path.suffix for path in finetune.iterdir()] == [".lock"]
    with pytest.raises(RunError, match="diverged in baseline"):
        run("baseline.lr=1e30", work=tmp_path)
    early = next(r for r in records.read_all(tmp_path / "results") if r.diverged.stage == "baseline")
    assert (early.accuracy, early.channels, early.cost.dense) == ({}, {}, None)


def test_a_damaged_stage_is_set_aside_and_computed_anew(run, finished, unrecorded, caplog):
    caplog.set_level("INFO")
    folder = unrecorded / finished.folder("baseline").relative_to(finished.path.parents[3])
    network = folder / "weights.safetensors"
    content = network.read_bytes()
    network.write_bytes(content[:-1] + bytes([content[-1] ^ 4]))
    assert run(BUDGET, work=unrecorded).record.accuracy == finished.record.accuracy
    assert (network.read_bytes(), files.verify_manifest(folder)) == (content, "")
    assert len(list(folder.parent.glob(f"{folder.name}.damaged-*"))) == 1
    assert caplog.text.count("found, not computed again") == 4
    assert f"baseline {folder.name}: damaged" in caplog.text


def test_a_mistake_that_shows_late_says_what_is_kept():
    planned = [SimpleNamespace(name="baseline", done=True), SimpleNamespace(name="prune", done=False)]
    with pytest.raises(UserError, match=r"^cannot be met\nkept: baseline$"), runner.guarded(planned):
        raise UserError("cannot be met")


def no_compiler(graph, inputs):
    raise ValueError("no compiler here")


@pytest.mark.parametrize(
    ("action", "said"),
    [
        (lambda: torch.empty(10**16), "out of memory"),
        (lambda: bytearray(10**17), "out of memory"),
        (lambda: save_file({"a": torch.zeros(1)}, "/proc/a"), "No such file"),
        ((Path("/proc") / "none").read_bytes, "No such file"),
        (lambda: torch.compile(torch.sin, backend=no_compiler)(torch.zeros(1)),
         "trainer.compile=true: .*no compiler here.*; trainer.compile=false avoids it"),
    ],
)  # fmt: skip
def test_failures_of_the_machine_are_explained(action, said):
    with pytest.raises(RunError, match=f"{said}(.|\n)*the same command goes on"), runner.guarded([]):
        action()
    with pytest.raises(RuntimeError, match="sizes"), runner.guarded([]):  # a fault of the program
        raise RuntimeError("sizes do not fit")


@pytest.mark.parametrize("problem", [OSError(errno.ENOSPC, "No space left", "x"), KeyboardInterrupt()])
def test_a_stopped_run_says_what_is_kept(run, unrecorded, monkeypatch, capsys, problem):
    def fail(run, stage, obtain=stages.obtain):
        if stage == "finetune":
            raise problem
        return obtain(run, stage)

    shutil.rmtree(unrecorded / "outputs" / "stages" / "finetune")
    monkeypatch.setattr(stages, "obtain", fail)
    with pytest.raises((RunError, KeyboardInterrupt)) as stopped:
        run(BUDGET, work=unrecorded)
    happened, kept = (str(stopped.value) or capsys.readouterr().err.strip()).splitlines()[-2:]
    assert "No space left: 'x'" in happened or happened == "interrupted"
    assert kept == "kept: baseline, sparsify, score, prune; the same command goes on"
