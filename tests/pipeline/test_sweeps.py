"""A sweep ends with the same words and code whatever launcher did its jobs, and they share their stages."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib.util import find_spec

import pytest

from tests.composing import ROOT
from tests.pipeline.dying import PROCESSES, ended, finished, places

TINY = ["model=vgg_small", "dataset=digits", "debug=tiny", "trainer.threads=1"]
LONG = ["model=vgg_small", "dataset=digits", "baseline.epochs=500", "trainer.threads=1",
        "trainer.checkpoint_minutes=0"]  # fmt: skip
PLUGINS = {
    "joblib": "hydra_joblib_launcher", "submitit_local": "hydra_submitit_launcher",
    "submitit_slurm": "hydra_submitit_launcher", "ray": "hydra_ray_launcher", "optuna": "hydra_optuna_sweeper",
}  # fmt: skip
EXTRAS = {"submitit_local": "slurm", "submitit_slurm": "slurm"}
LAUNCHERS = ["joblib", *(pytest.param(name, marks=pytest.mark.slow) for name in ("submitit_local", "ray"))]


def installed(name):
    return bool(find_spec("hydra_plugins") and find_spec(f"hydra_plugins.{PLUGINS[name]}"))


def needs(name):
    if not installed(name):
        pytest.skip(f"hydra/...={name} is not installed: pip install -e '.[{EXTRAS.get(name, name)}]'")


def start(*words):
    return subprocess.Popen(
        [sys.executable, "run.py", "-m", *words], cwd=ROOT, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def sweep(*words):
    process = start(*words)
    said, problems = process.communicate(timeout=300)
    return process.returncode, summary(said), problems


def summary(said):
    """The lines of the summary, without a time that is estimated and what Ray repeats of its workers."""
    lines = said[said.find("sweep: ") :].splitlines()
    return [re.sub(", about .*", "", line) for line in lines if line.startswith(("sweep: ", "  ", "all "))]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_jobs_in_other_processes_share_stages_and_are_summed_up_like_those_in_one(launcher, tmp_path):
    needs(launcher)
    words = [*TINY, "ratio=0.5,1.3,0.7", *places(tmp_path)]
    told = sweep(f"hydra/launcher={launcher}", *words)
    logs = "".join(path.read_text() for path in (tmp_path / "outputs" / "runs").rglob("run.log"))
    trained = {stage: logs.count(f"{stage} epoch 1/1: ") for stage in ("baseline", "sparsify", "finetune")}
    assert trained == {"baseline": 1, "sparsify": 1, "finetune": 2}
    assert len(list((tmp_path / "results").rglob("*.json"))) == 2
    before = finished(tmp_path)
    code, lines, _ = sweep(*words)  # finds what the others made
    assert told[:2] == (code, lines)
    assert finished(tmp_path) == before
    assert (code, lines[0]) == (2, "sweep: 3 jobs, 1 failed")
    assert [line.split()[:2] for line in lines[1:]] == [["done", TINY[0]], ["FAILED", TINY[0]], ["done", TINY[0]]]
    assert lines[2].endswith(": ratio=1.3: must be at least 0 and below 1")
    assert not list((tmp_path / "outputs" / "multirun").glob("2*"))  # the notes are gone


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "ray"])
def test_a_dry_run_plans_the_whole_sweep(launcher, tmp_path):
    needs(launcher)
    words = [*TINY, "ratio=0.5,0.6", "--dry-run", *places(tmp_path)]
    assert sweep(f"hydra/launcher={launcher}", *words)[:2] == (code_and_plan := sweep(*words)[:2])
    assert code_and_plan[0] == 0
    assert code_and_plan[1][-1] == "all together: 0 stages found, 7 to do: 4 epochs"


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "ray"])
def test_a_job_that_is_killed_shows_as_lost(launcher, tmp_path):
    needs(launcher)
    more = ["hydra.launcher.ray.remote.max_retries=0"] if launcher == "ray" else []
    process = start(f"hydra/launcher={launcher}", *LONG, "seed=0,1", *more, *places(tmp_path))
    locks = []
    while len(list(tmp_path.glob("outputs/stages/baseline/*.checkpoint"))) < 2:
        assert process.poll() is None
        time.sleep(0.1)
    locks = sorted(tmp_path.glob("outputs/stages/baseline/*.lock"))
    victims = [int(re.match(r"process (\d+) ", lock.read_text())[1]) for lock in locks]
    for victim in victims:
        os.kill(victim, signal.SIGKILL)
    said, problems = process.communicate(timeout=120)
    assert process.returncode == 1
    assert summary(said)[0] == "sweep: 2 jobs, 0 failed, 2 lost"
    assert all(re.match(r"  LOST    .*: killed; the same command goes on", line) for line in summary(said)[1:])
    assert re.search(r"^error: \w+: .", problems, re.MULTILINE)
    assert "Traceback" not in problems
