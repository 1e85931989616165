"""A sweep ends with the same words and code whatever launcher did its jobs, and they share their stages."""

import os
import re
import signal
import subprocess
import sys
import time
from importlib.util import find_spec

import pytest
from omegaconf import OmegaConf

from lpslim.base.errors import UserError
from lpslim.experiment import jobs, objective, records, sweep
from tests.composing import ROOT
from tests.experiment.dying import PROCESSES, ended, facts, finished, places

TINY = ["model=vgg_small", "dataset=digits", "debug=tiny", "trainer.threads=1"]
LONG = ["model=vgg_small", "dataset=digits", "baseline.epochs=500", "trainer.threads=1",
        "trainer.checkpoint_minutes=0"]  # fmt: skip
PLUGINS = {
    "joblib": "hydra_joblib_launcher", "submitit_local": "hydra_submitit_launcher",
    "submitit_slurm": "hydra_submitit_launcher", "ray": "hydra_ray_launcher",
    "optuna": "hydra_optuna_sweeper",
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


def swept(*words):
    process = start(*words)
    said, problems = process.communicate(timeout=300)
    return process.returncode, summary(said), problems


def summary(said):
    """The lines of the summary, without times and what Ray repeats of its workers."""
    lines = said[said.find("sweep: ") :].splitlines()
    kept = [line for line in lines if line.startswith(("sweep: ", "  ", "all "))]
    return [re.sub(r", (about )?[\d.]+ (s|min)$", "", line) for line in kept]


def holder(lock):
    return int(re.match(r"process (\d+) ", lock.read_text())[1])


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_jobs_in_other_processes_share_stages_and_are_summed_up_like_those_in_one(launcher, tmp_path):
    needs(launcher)
    words = [*TINY, "ratio=0.5,1.3,0.7", *places(tmp_path)]
    *_, planned = swept(*words, "--dry-run")[1]
    assert planned == "all together: 0 stages found, 7 to do: 4 epochs (6 if nothing were shared)"
    told = swept(f"hydra/launcher={launcher}", *words)
    *_, computed = told[1]
    assert computed == "all together: 7 stages computed: 4 epochs (6 if nothing were shared)"
    logs = "".join(path.read_text() for path in (tmp_path / "outputs" / "runs").rglob("run.log"))
    trained = {stage: logs.count(f"{stage} epoch 1/1: ") for stage in ("baseline", "sparsify", "finetune")}
    assert trained == {"baseline": 1, "sparsify": 1, "finetune": 2}
    assert len(list((tmp_path / "results").rglob("*.json"))) == 2
    before = finished(tmp_path)
    code, lines, _ = swept(*words)  # finds what the others made
    assert lines.pop() == "all together: 0 stages computed: 0 epochs (6 if nothing were shared)"
    assert (told[0], told[1][:-1]) == (code, lines)
    assert finished(tmp_path) == before
    assert (code, lines[0]) == (2, "sweep: 3 jobs, 1 failed")
    assert [line.split()[:2] for line in lines[1:]] == [
        ["done", TINY[0]],
        ["FAILED", TINY[0]],
        ["done", TINY[0]],
    ]
    assert lines[2].endswith(": ratio=1.3: must be at least 0 and below 1")
    assert not list((tmp_path / "outputs" / "multirun").glob("2*"))  # the notes are gone


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "ray"])
def test_a_dry_run_plans_the_whole_sweep(launcher, tmp_path):
    needs(launcher)
    words = [*TINY, "ratio=0.5,0.6", "--dry-run", *places(tmp_path)]
    assert swept(f"hydra/launcher={launcher}", *words)[:2] == (code_and_plan := swept(*words)[:2])
    assert code_and_plan[0] == 0
    assert (
        code_and_plan[1][-1] == "all together: 0 stages found, 7 to do: 4 epochs (6 if nothing were shared)"
    )


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "ray"])
def test_a_job_that_is_killed_shows_as_lost(launcher, tmp_path):
    needs(launcher)
    more = ["hydra.launcher.ray.remote.max_retries=0"] if launcher == "ray" else []
    process = start(f"hydra/launcher={launcher}", *LONG, "seed=0,1", *more, *places(tmp_path))
    while len(list(tmp_path.glob("outputs/stages/baseline/*.checkpoint"))) < 2:
        assert process.poll() is None
        time.sleep(0.1)
    for victim in [holder(lock) for lock in tmp_path.glob("outputs/stages/baseline/*.lock")]:
        os.kill(victim, signal.SIGKILL)
    said, problems = process.communicate(timeout=120)
    assert process.returncode == 1
    assert summary(said)[0] == "sweep: 2 jobs, 0 failed, 2 lost"
    assert all(
        re.match(r"  LOST    .*: killed; the same command goes on", line) for line in summary(said)[1:]
    )
    assert re.search(r"^error: \w+: .", problems, re.MULTILINE)
    assert "Traceback" not in problems


@pytest.mark.slow
def test_ray_begins_a_killed_job_again(tmp_path):
    needs("ray")
    process = start("hydra/launcher=ray", *LONG, "baseline.epochs=20", "seed=0,1", *places(tmp_path))
    while not list(tmp_path.glob("outputs/stages/baseline/*.checkpoint")):
        assert process.poll() is None
        time.sleep(0.1)
    lock = next(tmp_path.glob("outputs/stages/baseline/*.checkpoint")).name.split(".")[0] + ".lock"
    os.kill(holder(tmp_path / "outputs" / "stages" / "baseline" / lock), signal.SIGKILL)
    said, _ = process.communicate(timeout=280)
    assert process.returncode == 0
    assert summary(said)[0] == "sweep: 2 jobs, 0 failed"
    logs = "".join(path.read_text() for path in (tmp_path / "outputs" / "runs").rglob("run.log"))
    assert "goes on after epoch" in logs


@pytest.mark.slow
def test_an_interrupted_sweep_says_what_had_begun(tmp_path):
    needs("joblib")
    process = start("hydra/launcher=joblib", *LONG, "seed=0,1,2", *places(tmp_path))
    while len(list(tmp_path.glob("outputs/stages/baseline/*.checkpoint"))) < 2:
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert summary(said)[0] == "sweep: 3 jobs, 0 failed, 2 stopped, 1 not begun"


@pytest.mark.slow
def test_a_search_gets_validation_accuracy_and_size_and_repeats_itself(tmp_path):
    needs("optuna")
    words = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "M=0.5,1,null", "target_flops=0.5", *TINY]
    code, lines, _ = swept(*words, *places(tmp_path))
    assert (code, lines[0]) == (0, "sweep: 3 jobs, 0 failed")
    made = facts(tmp_path)
    front = OmegaConf.load(tmp_path / "outputs" / "multirun" / "optimization_results.yaml").solutions
    measured = {(r["curves"]["finetune"]["val_accuracy"][-1], r["cost"]["pruned"]["params"]) for r in made}
    assert len(measured) == len(made) == 3
    assert {tuple(each["values"]) for each in front} <= measured
    assert max(measured) in {tuple(each["values"]) for each in front}
    assert swept(*words, *places(tmp_path))[:2] == (code, lines)
    assert facts(tmp_path) == made  # found again, every one
    more = ["hydra/launcher=joblib", "hydra.sweeper.n_jobs=2"] if installed("joblib") else []
    assert swept(*words, *more, *places(tmp_path))[0] == 0


@pytest.mark.slow
def test_a_search_notes_a_trial_that_diverges_and_goes_on(tmp_path):
    needs("optuna")
    words = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "finetune.lr=1e30", "target_flops=0.5"]
    code, lines, _ = swept(*words, *TINY, *places(tmp_path))
    assert (code, lines[0]) == (1, "sweep: 2 jobs, 2 failed")
    assert all("diverged in finetune" in line for line in lines[1:])


def test_objectives_come_from_the_record_and_never_from_the_test_set():
    path = next((ROOT / "results" / "records").rglob("*.json"))
    record = records.read(path)
    assert objective.values(path, ["val_accuracy", "params", "macs"]) == (
        record.curves["finetune"]["val_accuracy"][-1],
        record.cost["pruned"]["params"],
        record.cost["pruned"]["macs"],
    )
    assert not [name for name in objective.MEASURES if "test" in name]
    with pytest.raises(
        UserError, match=r"^hydra\.callbacks\.summary\.objective=test_accuracy: must be among "
    ):
        objective.check(["test_accuracy"])
    with pytest.raises(UserError, match=r"^dry_run=true: a search needs what its runs measure$"):
        objective.values(None, ["params"])


@pytest.mark.parametrize("name", PLUGINS)
def test_a_plugin_that_is_not_there_is_named_with_its_extra(name):
    kind = "sweeper" if name == "optuna" else "launcher"
    if installed(name):
        pytest.skip(f"{name} is installed")
    code, _, problems = swept(f"hydra/{kind}={name}", "ratio=0.5")
    extra = EXTRAS.get(name, name)
    assert (code, problems) == (
        2, f"error: hydra/{kind}={name}: not installed; python -m pip install -e '.[{extra}]'\n",
    )  # fmt: skip


def live(folder, number, until):
    jobs.begin(folder, number, f"seed={number}")
    (folder.parent / f"begun{number}").touch()
    while not until.exists():
        time.sleep(0.01)
    jobs.end(folder, number, jobs.Job(f"seed={number}", "done"))


def test_a_job_is_waiting_running_done_or_lost(tmp_path):
    notes, planned = tmp_path / "notes", ["seed=0", "seed=1", "seed=2"]
    notes.mkdir()
    one, other = (PROCESSES.Process(target=live, args=(notes, number, tmp_path / "end")) for number in (0, 1))
    for process in (one, other):
        process.start()
    while not ((tmp_path / "begun0").exists() and (tmp_path / "begun1").exists()):
        time.sleep(0.01)
    assert [job.state for job in jobs.read(notes, planned)] == ["running", "running", "waiting"]
    other.kill()
    ended(other)
    assert [job.state for job in jobs.read(notes, planned)] == ["running", "lost", "waiting"]
    (tmp_path / "end").touch()
    assert ended(one) == 0
    found = jobs.read(notes, planned)
    assert sweep.summary(found) == [
        "sweep: 3 jobs, 0 failed, 1 lost, 1 not begun",
        "  done    seed=0",
        "  LOST    seed=1: killed; the same command goes on",
    ]
    assert [job.overrides for job in jobs.read(notes)] == ["seed=0", "seed=1"]  # where no plan is known
