"""What a machine can do to a run: what is said, what is kept, and that the same command goes on."""

import errno
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from lpslim.failures import reason
from safetensors.torch import save_file

from lpslim.base import files
from lpslim.base.errors import RunError, UserError
from lpslim.cli import code_of
from lpslim.data import imagefolder
from lpslim.experiment import records
from tests.composing import ROOT
from tests.experiment.dying import begin, ended, facts, places

BUDGET = "target_flops=0.5"
STAGES = ("baseline", "sparsify", "score", "prune", "finetune")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    assert ended(begin(*places(folder), BUDGET)) == 0
    return folder


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


DAMAGE = {
    "flipped": (lambda f: flip(f / "weights.safetensors"), "weights.safetensors: is not the file that was"),
    "truncated": (lambda f: os.truncate(f / "weights.safetensors", 99), "weights.safetensors: is not the"),
    "deleted": (lambda f: (f / "weights.safetensors").unlink(), "weights.safetensors: is missing"),
    "added": (lambda f: (f / "notes.txt").write_text("x"), "notes.txt: is not of this stage"),
    "edited": (lambda f: flip(f / "stage.json"), "stage.json: "),
    "lost": (lambda f: (f / "stage.json").unlink(), "stage.json: cannot be read"),
}


@pytest.mark.parametrize("stage", ["baseline", "finetune"])
@pytest.mark.parametrize("harm", DAMAGE)
def test_a_damaged_stage_is_set_aside_and_computed_again(finished, tmp_path, harm, stage):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    expected = facts(tmp_path)
    shutil.rmtree(tmp_path / "results")
    (folder,) = (path.parent for path in (tmp_path / "outputs" / "stages" / stage).glob("*/stage.json"))
    spoil, words = DAMAGE[harm]
    spoil(folder)
    assert store.damage(folder).startswith(words)
    assert ended(begin(*places(tmp_path), BUDGET)) == 0
    assert facts(tmp_path) == expected
    assert store.damage(folder) == ""
    assert len(list(folder.parent.glob(f"{folder.name}.damaged-*"))) == 1
    (log,) = (tmp_path / "outputs" / "runs").rglob("run.log")
    said = log.read_text()
    assert f"{stage} {folder.name}: is damaged ({words}" in said
    assert said.count("found, not computed again") == len(STAGES) - 1


def test_a_stage_older_than_manifests_is_taken_as_it_is(tmp_path):
    store.write_json(tmp_path / "stage.json", {"curve": []})
    assert store.damage(tmp_path) == ""


@pytest.mark.parametrize(
    ("largest", "left"), [(20_000, "nothing yet"), (3_000_000, "baseline e6dc4ee4e5296e54")]
)
def test_a_full_disk_is_told_and_nothing_is_lost(finished, tmp_path, largest, left):
    told = tmp_path / "told"
    assert ended(begin(*places(tmp_path), BUDGET, largest=largest, told=told)) == 1
    happened, kept, remedy = told.read_text().splitlines()
    assert re.match(r"a checkpoint could not be written, with \d+ MB free on its disk: ", happened)
    assert kept == f"kept: {left}"
    assert remedy == "free some space, then: the same command goes on from what was kept"
    assert ended(begin(*places(tmp_path), BUDGET)) == 0
    assert facts(tmp_path) == facts(finished)


@pytest.mark.parametrize("place", ["results_dir", "work_dir"])
def test_a_folder_that_cannot_be_written_is_refused_before_any_work(run, tmp_path, place):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError) as refused:
        run(BUDGET, f"{place}={tmp_path}/file/inside", work=tmp_path)
    assert str(refused.value) == f"{place}={tmp_path}/file/inside: cannot be written to (Not a directory)"
    assert not (tmp_path / "outputs" / "stages").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_data_that_vanish_in_mid_run_are_told(tmp_path, workers):
    split = imagefolder.StreamedSplit([(tmp_path / "a.jpg", 0)] * 4, 4, False, workers)
    with pytest.raises(FileNotFoundError) as problem:
        list(split.train_batches(2, 0))
    happened, remedy = reason(problem.value)
    assert happened.endswith(f"No such file or directory: '{tmp_path}/a.jpg'") or happened == (
        f"No such file or directory: {tmp_path}/a.jpg"
    )
    assert remedy.startswith("put back what is missing: data and work_dir must stay")


def raised(action):
    with pytest.raises(Exception) as problem:  # noqa: PT011 - whatever the libraries raise
        action()
    return problem.value


@pytest.mark.parametrize(
    ("action", "happened", "remedy"),
    [
        (lambda: torch.empty(10**16), "out of memory (", "take a smaller batch_size"),
        (lambda: bytearray(10**17), "out of memory (MemoryError)", "take a smaller batch_size"),
        (
            lambda: save_file({"a": torch.zeros(1)}, "/proc/a"),
            "Error while serializing: I/O",
            "put back what",
        ),
        (
            lambda: _raise(OSError(errno.EROFS, "Read-only file system", "x")),
            "Read-only file system: x",
            "make",
        ),
        (
            lambda: _raise(OSError(errno.ENOLCK, "No locks available")),
            "No locks available",
            "take a work_dir",
        ),
    ],
)
def test_what_a_machine_does_is_told_with_what_to_do(action, happened, remedy):
    found = reason(raised(action))
    assert found[0].startswith(happened)
    assert found[1].startswith(remedy)


def _raise(problem):
    raise problem


def test_a_fault_of_the_program_keeps_its_traceback():
    assert reason(KeyError("x")) is None
    assert reason(UserError("p=0.5: must be ...")) is None


def test_a_loss_that_is_no_number_stops_at_its_step_and_is_recorded(run, tmp_path, caplog, capsys):
    caplog.set_level(logging.CRITICAL)
    words = (BUDGET, "finetune.lr=1e30", "trainer.checkpoint_minutes=0")
    with pytest.raises(RunError) as stopped:
        run(*words, work=tmp_path)
    assert code_of(stopped.value) == 1
    (path,) = (tmp_path / "results").rglob("*.json")
    record = records.read(path)
    first, computed, folder, place, advice = str(stopped.value).splitlines()
    assert first == "adhoc, seed 0: diverged in finetune, epoch 1, step 2: loss nan"
    assert place == f"record: {path}"
    assert folder.startswith("run folder: ")
    assert computed.startswith("4 stages computed: 2 epochs, ")
    assert advice == "a lower learning rate may help"
    assert record.diverged == {"stage": "finetune", "epoch": 1, "step": 2, "loss": "nan"}
    assert set(record.accuracy) == {"baseline", "sparsify", "prune"}
    assert abs(record.cost["flops_drop"] - 50) <= 0.3
    stages = tmp_path / "outputs" / "stages"
    assert not list((stages / "finetune").glob("*.checkpoint"))
    assert not list((stages / "finetune").glob("*/stage.json"))
    capsys.readouterr()
    with pytest.raises(RunError, match="diverged in finetune"):
        run(*words, work=tmp_path)
    assert "to do" not in capsys.readouterr().out


def test_a_run_that_diverges_at_once_is_recorded(run, tmp_path, caplog):
    caplog.set_level(logging.CRITICAL)
    with pytest.raises(RunError):
        run(BUDGET, "baseline.lr=1e30", work=tmp_path)
    (path,) = (tmp_path / "results").rglob("*.json")
    record = records.read(path)
    assert record.diverged["stage"] == "baseline"
    assert (record.accuracy, record.channels, list(record.cost)) == ({}, {}, ["rule"])


def test_an_interrupted_program_says_what_is_kept_and_ends_the_sweep(tmp_path):
    words = ["model=vgg_small", "dataset=digits", "baseline.epochs=500", "trainer.threads=1",
             "trainer.checkpoint_minutes=0", "seed=0,1", *places(tmp_path)]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "run.py", "-m", *words], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        # whoever runs the tests may ignore it, and that would be inherited
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        while not list(tmp_path.glob("outputs/stages/baseline/*.checkpoint")):
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "\ninterrupted\nkept: a checkpoint of baseline " in said
    assert "Traceback" not in said
    assert list(tmp_path.glob("outputs/stages/baseline/*.checkpoint"))
