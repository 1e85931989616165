"""Sweeps: one summary and exit code whichever launcher does the jobs, which share their stages."""

import os
import re
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from lpslim.base.errors import RunError, UserError
from lpslim.experiment import records, sweep
from tests.composing import ROOT
from tests.experiment.dying import places

TINY = ["model=vgg_small", "dataset=digits", "debug=tiny", "trainer.threads=1"]
LONG = ["model=vgg_small", "dataset=digits", "baseline.epochs=500", "trainer.threads=1",
        "trainer.checkpoint_minutes=0"]  # fmt: skip
PLUGINS = {"cores": "joblib_launcher", "slurm_local": "submitit_launcher", "ray_local": "ray_launcher",
           "search": "optuna_sweeper"}  # fmt: skip
LAUNCHERS = ["cores", *(pytest.param(name, marks=pytest.mark.slow) for name in ("slurm_local", "ray_local"))]
ENVIRONMENT = {**os.environ, "RAY_AUTH_MODE": "disabled"}  # else Ray writes a token to the home folder


def needs(preset):
    if not (find_spec("hydra_plugins") and find_spec(f"hydra_plugins.hydra_{PLUGINS[preset]}")):
        pytest.skip(f"{preset} is not installed: pip install -e '.[{preset.partition('_')[0]}]'")


def start(folder, *words):
    return subprocess.Popen(
        [sys.executable, "run.py", "-m", *words, *places(folder)], cwd=ROOT, env=ENVIRONMENT, text=True,
        start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def end(process, timeout=300):
    """Return the exit code, the lines of the summary and the error stream."""
    said, problems = process.communicate(timeout=timeout)
    lines = said[said.find("sweep: ") :].splitlines() if "sweep: " in said else []
    return process.returncode, [line for line in lines if line.startswith(("sweep: ", "  "))], problems


def swept(folder, *words):
    return end(start(folder, *words))


def measured(folder):
    return sorted(records.read_all(folder / "results"), key=lambda record: record.key)


def holders(folder):
    """Return the processes that hold the lock of a baseline."""
    locks = {str(path) for path in folder.glob("outputs/stages/baseline/*.lock")}
    pids = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            pids |= {int(link.parts[2])} if os.readlink(link) in locks else set()
        except OSError:
            continue
    return sorted(pids)


def wait(process, happened):
    until = time.monotonic() + 120
    while not happened():
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_jobs_in_other_processes_share_stages_and_are_summed_up_like_those_in_one(launcher, tmp_path):
    needs(launcher)
    words = [*TINY, "ratio=0.5,1.3,0.7"]
    code, lines, _ = swept(tmp_path, f"hydra/launcher={launcher}", *words)
    assert code == 2
    assert lines == [
        "sweep: 3 jobs, 1 failed",
        "  done   ratio=0.5",
        "  FAILED ratio=1.3: ratio=1.3: must be at least 0 and below 1",
        "  done   ratio=0.7",
    ]
    logs = "".join(path.read_text() for path in (tmp_path / "outputs" / "runs").rglob("run.log"))
    trained = {stage: logs.count(f"{stage} epoch 1/1: ") for stage in ("baseline", "sparsify", "finetune")}
    assert trained == {"baseline": 1, "sparsify": 1, "finetune": 2}
    made = measured(tmp_path)
    assert len(made) == 2
    job = JobReturn(status=JobStatus.COMPLETED)
    pruned, val = made[0].cost.pruned, made[0].curves["finetune"].val_accuracy[-1]
    several = ["params", "val_accuracy", "macs"], (pruned.params, val, pruned.macs)
    for names, values in (several, (["val_accuracy"], val)):  # Optuna takes one objective as a number alone
        job.return_value = records.path_of(tmp_path / "results", made[0].experiment, made[0].key)
        sweep.Objective(names).on_job_end(OmegaConf.create(), job)
        assert job.return_value == values
    assert swept(tmp_path, *words)[:2] == (code, lines)  # in one process, which finds what the others made
    assert measured(tmp_path) == made


def test_a_sweep_that_matches_nothing_is_a_mistake(tmp_path):
    code, lines, problems = swept(tmp_path, "experiment=glob(vgg16/*)")
    assert (code, lines) == (2, [])
    assert problems == "error: the sweep has no job: a pattern such as glob(...) matches nothing\n"


def test_rows_in_folders_are_swept_by_their_group_and_a_dry_run_trains_nothing(tmp_path):
    code, lines, _ = swept(tmp_path, "+experiment/digits_resnet20=glob(*)", "--dry-run")
    rows = sorted(path.stem for path in (ROOT / "conf" / "experiment" / "digits_resnet20").glob("*.yaml"))
    assert (code, lines[0]) == (0, f"sweep: {len(rows)} jobs, 0 failed")
    assert lines[1] == f"  done   +experiment/digits_resnet20={rows[0]}"
    assert not (tmp_path / "outputs" / "stages").exists()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["cores", "slurm_local", "ray_local"])
def test_jobs_that_are_killed_are_lost_and_the_same_command_goes_on(launcher, tmp_path):
    needs(launcher)
    more = ["hydra.launcher.ray.remote.max_retries=0"] if launcher == "ray_local" else []
    process = start(tmp_path, f"hydra/launcher={launcher}", *LONG, "seed=0,1", *more)
    wait(process, lambda: len(holders(tmp_path)) >= 2)
    for victim in holders(tmp_path):
        os.kill(victim, signal.SIGKILL)
    code, lines, problems = end(process)
    assert (code, lines[0]) == (1, "sweep: 2 jobs, 0 failed, 2 lost")
    assert lines[1:] == [f"  LOST   seed={seed}: {sweep.LOST}" for seed in (0, 1)]
    assert re.search(r"^error: the launcher gave up: \w+: .", problems, re.MULTILINE)
    assert "Traceback" not in problems


@pytest.mark.slow
def test_ray_begins_a_killed_job_again(tmp_path):
    needs("ray_local")
    process = start(tmp_path, "hydra/launcher=ray_local", *LONG, "baseline.epochs=20", "seed=0,1")
    wait(process, lambda: list(tmp_path.glob("outputs/stages/baseline/*.checkpoint*")))
    os.kill(holders(tmp_path)[0], signal.SIGKILL)
    code, lines, _ = end(process)
    assert (code, lines[0]) == (0, "sweep: 2 jobs, 0 failed")
    assert len(measured(tmp_path)) == 2


@pytest.mark.slow
def test_an_interrupted_sweep_says_what_had_begun(tmp_path):
    needs("cores")
    process = start(tmp_path, "hydra/launcher=cores", *LONG, "seed=0,1,2")
    wait(process, lambda: len(holders(tmp_path)) >= 2)
    os.killpg(process.pid, signal.SIGINT)
    code, lines, _ = end(process, timeout=60)
    assert (code, lines[0]) == (130, "sweep: 2 jobs, 0 failed, 2 lost")


@pytest.mark.slow
def test_a_search_gets_validation_accuracy_and_size_and_repeats_itself(tmp_path):
    needs("search")
    words = ["hydra/sweeper=search", "hydra.sweeper.n_trials=3", "M=0.5,1,null", "target_flops=0.5", *TINY]
    code, lines, _ = swept(tmp_path, *words)
    assert (code, lines[0]) == (0, "sweep: 3 jobs, 0 failed")
    made = measured(tmp_path)
    (front,) = tmp_path.glob("outputs/multirun/*/optimization_results.yaml")
    values = {(record.curves["finetune"].val_accuracy[-1], record.cost.pruned.params) for record in made}
    best = {tuple(solution["values"]) for solution in OmegaConf.load(front).solutions}
    assert len(values) == len(made) == 3
    assert max(values) in best <= values
    assert swept(tmp_path, *words)[:2] == (code, lines)
    assert measured(tmp_path) == made  # every one of them found again
    assert swept(tmp_path, *words, "hydra/launcher=cores", "hydra.sweeper.n_jobs=2")[0] == 0


@pytest.mark.slow
def test_a_search_notes_a_trial_that_diverges_and_goes_on(tmp_path):
    needs("search")
    words = ["hydra/sweeper=search", "hydra.sweeper.n_trials=2", "finetune.lr=1e30", "target_flops=0.5"]
    code, lines, _ = swept(tmp_path, *words, *TINY)
    assert (code, lines[0]) == (1, "sweep: 2 jobs, 2 failed")
    assert all("diverged in finetune" in line for line in lines[1:])


def test_a_search_has_no_measure_of_the_test_set():
    assert not [name for name in sweep.MEASURES if "test" in name]
    with pytest.raises(UserError, match=r"measures=test_accuracy: must be one of val_accuracy, "):
        sweep.Objective(["test_accuracy"])
    with pytest.raises(UserError, match="measures=: must be one of"):
        sweep.Objective([])


def test_a_search_by_validation_accuracy_needs_a_validation_split():
    objective = OmegaConf.create({"measures": ["val_accuracy"]})
    composed = OmegaConf.create(
        {"hydra": {"callbacks": {"objective": objective}}, "dataset": {"val_fraction": 0}}
    )
    with pytest.raises(UserError, match=r"measures=val_accuracy: needs a dataset\.val_fraction above 0"):
        sweep.check(composed)
    composed.dataset.val_fraction = 0.1
    sweep.check(composed)


def test_a_note_says_how_a_job_ended(tmp_path):
    problems = [None, UserError("p=0: wrong\nM=0: wrong"), RunError("disk full"), KeyError("bug")]
    for number, problem in enumerate(problems):
        with sweep.job(tmp_path, number, ["model=vgg16", f"seed={number}"]):
            if problem:
                raise problem
    with pytest.raises(KeyboardInterrupt), sweep.job(tmp_path, 10, ["model=vgg16", "seed=10"]):
        raise KeyboardInterrupt
    notes = sweep.notes(tmp_path)
    assert [note["code"] for note in notes] == [0, 2, 1, 1, 1]
    assert ["KeyError" in note["trace"] for note in notes] == [False, False, False, True, False]
    assert sweep.summary(notes) == [
        "sweep: 5 jobs, 3 failed, 1 lost",
        "  done   seed=0",
        "  FAILED seed=1: p=0: wrong",
        "  FAILED seed=2: disk full",
        "  FAILED seed=3: KeyError: 'bug'",
        f"  LOST   seed=10: {sweep.LOST}",
    ]
