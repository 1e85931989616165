"""Whole runs in two processes from the command line: by torchrun, by accelerate launch, and refused."""

import os
import subprocess
import sys

import pytest

from lpslim.base.errors import UserError
from lpslim.experiment import records
from lpslim.experiment.runner import execute
from tests.composing import ROOT, configured
from tests.experiment.dying import places
from tests.training.joining import together

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
ACCELERATE = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
              "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
              "--main_process_port", "0")  # fmt: skip
TEXT = ("model=bert_tiny", "dataset=toy_text", "target_params=0.4", "baseline.epochs=1",
        "regularizer.train.epochs=1", "finetune.epochs=1")  # fmt: skip
COMMON = ("trainer.threads=1", "trainer.precision=fp32", "trainer.device=cpu")


def run(folder, launcher, *words):
    """Return a finished command line, and the record that it left, if it left one."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, "run.py", *words, *COMMON, *places(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, timeout=180)
    found = list((folder / "results").rglob("*.json"))
    return done, records.read(found[0]) if found else None


def test_two_processes_measure_what_one_measures_and_record_it_once(tmp_path):
    alone = records.read(execute(configured(*TEXT, *COMMON, *places(tmp_path / "1")), None))
    second, record = run(tmp_path / "2", TORCHRUN, *TEXT)
    assert second.returncode == 0, second.stderr
    assert second.stdout.count("finetune epoch 1/1: ") == 1
    assert len(list(tmp_path.glob("2/outputs/runs/*/*/tensorboard/events*"))) == 1  # the main one tracks
    assert (record.stages, record.channels) == (alone.stages, alone.channels)
    assert (record.environment["processes"], alone.environment["processes"]) == (2, 1)
    for stage, curve in alone.curves.items():
        assert record.curves[stage].train_loss == pytest.approx(curve.train_loss, abs=2e-4)
        assert record.curves[stage].test_accuracy == pytest.approx(curve.test_accuracy, abs=2e-4)
    for mine, theirs in zip(record.convergence, alone.convergence, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)


def _refused(folder):
    words = ("model=vgg_small", "debug=tiny", "regularizer.train.batch_size=127")
    with pytest.raises(UserError) as refused:
        execute(configured(*words, *COMMON, *places(folder)), None)
    return str(refused.value)


def test_a_batch_that_cannot_be_shared_is_refused_before_any_work(tmp_path):
    said = "regularizer.train.batch_size=127: must be a multiple of the 2 processes"
    assert together(_refused, tmp_path) == [said, said]
    assert not (tmp_path / "outputs" / "stages").exists()


@pytest.mark.slow
def test_accelerates_launcher_ends_with_the_refusal_once(tmp_path):
    words = ("model=vgg_small", "debug=tiny", "regularizer.train.batch_size=127")
    done, record = run(tmp_path, ACCELERATE, *words)
    assert (done.returncode, record) == (1, None)  # the launcher's own code
    assert done.stderr.count("error: regularizer.train.batch_size=127: ") == 1
    assert not (tmp_path / "outputs" / "stages").exists()
