"""Several processes that train one network: what one would measure, recorded once, and no rank apart."""

import logging
import os
import random
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn

from lpslim.base.errors import DivergenceError, UserError
from lpslim.data.images import TensorSplit
from lpslim.data.metrics import Task
from lpslim.experiment import records
from lpslim.sparsity.penalties.lp import Lp
from lpslim.training.checkpoint import Snapshots
from lpslim.training.evaluation import evaluate
from lpslim.training.loop import distributed, fit
from lpslim.training.regularizers.admm import Sparsifier
from lpslim.training.runtime import Hooks, Training
from lpslim.training.schedule import Recipe
from tests.composing import ROOT
from tests.experiment.dying import TINY, facts, places
from tests.training.joining import CPU, command, start, together
from tests.unit.test_snapshots import Fatal, KilledError, streamed
from tests.unit.test_training import data

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
ACCELERATE = (sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
              "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
              "--main_process_port", "0")  # fmt: skip
TEXT = ("model=bert_tiny", "dataset=grammar", "target_params=0.4", "baseline.epochs=2",
        "baseline.warmup_epochs=0.5", "regularizer.train.epochs=1", "finetune.epochs=1",
        "finetune.warmup_epochs=0", "trainer.threads=1")  # fmt: skip


# The launchers


def launched(launcher, *words):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launcher, "run.py", *words], cwd=ROOT, env=environment, text=True,
                          capture_output=True, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def one(folder):
    """Return the only record below a folder, and its networks."""
    (path,) = (folder / "results" / "records").rglob("*.json")
    record = records.read(path)
    stages = folder / "outputs" / "stages"
    return record, {s: load_file(stages / s / k / "weights.safetensors") for s, k in record.stages.items()
                    if s != "score"}  # fmt: skip


def test_torchrun_measures_what_one_process_measures(tmp_path):
    ((code, _, complaint),) = together(command, *TEXT, *places(tmp_path / "alone"), world=1)
    assert code == 0, complaint
    said = launched(TORCHRUN, *TEXT, *places(tmp_path / "two"))
    assert said.count("no record yet") == said.count("finetune epoch 1/1: ") == 1
    (alone, networks), (record, others) = one(tmp_path / "alone"), one(tmp_path / "two")
    assert record.stages == alone.stages
    assert record.environment["processes"] == 2
    assert "processes" not in alone.environment
    assert record.channels == alone.channels
    for stage, curve in alone.curves.items():
        for column, values in curve.items():
            assert record.curves[stage][column] == pytest.approx(values, abs=2e-4), (stage, column)
    for mine, theirs in zip(alone.convergence, record.convergence, strict=True):
        assert theirs == pytest.approx(mine, rel=1e-4)
    for stage, network in networks.items():
        for name, tensor in network.items():
            torch.testing.assert_close(others[stage][name], tensor, rtol=0, atol=2e-4, msg=f"{stage} {name}")
    (log,) = (tmp_path / "two" / "outputs" / "runs").rglob("run.log")
    assert log.read_text().count("finetune epoch 1/1: ") == 1
    assert len(list((tmp_path / "two" / "outputs" / "runs").rglob("events.*"))) == 1


def test_accelerate_starts_them_as_well(tmp_path):
    said = launched(ACCELERATE, *TINY[:3], "trainer=auto", *places(tmp_path))
    assert said.count("finetune epoch 1/1: ") == 1
    assert said.count("trainer: ") == 1  # one measures for both
    assert one(tmp_path)[0].environment["processes"] == 2


# The loop


class Noted(Hooks):
    """Joins the loop in place of another, and notes the seed of the forward pass."""

    def __init__(self, other):
        self.other, self.seeds = other, []
        self.after_backward, self.state_dict = other.after_backward, other.state_dict
        self.load_state_dict, self.begin = other.load_state_dict, other.begin

    def after_step(self, step, steps_per_epoch):
        self.seeds.append(torch.initial_seed())
        self.other.after_step(step, steps_per_epoch)


def network(source, dropout, norm):
    torch.manual_seed(0)
    channels, height, width = source.shape
    layers = [nn.Conv2d(channels, 4, 3), *[nn.BatchNorm2d(4)] * norm, nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(4 * (height - 2) * (width - 2), 2))


def trained(source, dropout=0.0, norm=False, folder=None, until=None, **recipe):
    """Train for two epochs under the ADMM, or until after a step; return all that must agree."""
    model = network(source, dropout, norm)
    sparsifier = Sparsifier(model, Lp(p=5, M=1), lamb=1e-2, rho=1e-1, form="squared", updates_per_epoch=2)
    hooks = Noted(sparsifier)
    recipe = Recipe(**{"epochs": 2, "batch_size": 8, "lr": 0.05, "label_smoothing": 0.1, **recipe})
    try:
        curve = fit(
            model, source, recipe, CPU, seed=3, stage="toy",
            hooks=hooks if until is None else Fatal(hooks, until),
            snapshots=Snapshots(folder / "stage", 0) if folder else None,
        )  # fmt: skip
    except KilledError:
        return None
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in curve]
    admm = sparsifier.admm
    return rows, [*model.state_dict().values()], [*admm.Z, *admm.V], sparsifier.convergence, hooks.seeds


def same(mine, theirs, but_for_seeds=True):
    """Whether two processes have the same bits."""
    tensors = all(torch.equal(a, b) for i in (1, 2) for a, b in zip(mine[i], theirs[i], strict=True))
    numbers = mine[0] == theirs[0] and mine[3] == theirs[3]
    return tensors and numbers and (but_for_seeds or mine[4] == theirs[4])


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("recipe", [{}, {"optimizer": "adamw", "lr": 0.01, "clip_norm": 0.5}])
def test_the_same_global_batch_gives_the_same_network_and_admm(recipe, world):
    (alone,) = together(_toy, recipe, world=1)
    found = together(_toy, recipe, world=world)
    assert all(same(found[0], each) for each in found[1:])
    rows, weights, state, convergence, _ = found[0]
    for mine, theirs in zip(rows + convergence, alone[0] + alone[3], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    for mine, theirs in zip(weights + state, alone[1] + alone[2], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def _toy(recipe):
    return trained(data(), **recipe)


def test_dropout_differs_between_processes_and_the_first_draws_as_one_alone_does():
    (alone,), found = together(_toy, {}, world=1), together(_toy, {})
    assert found[0][4] == alone[4]
    assert all(a != b for a, b in zip(found[0][4], found[1][4], strict=True))


@pytest.mark.parametrize("workers", [None, 0, 1], ids=["in memory", "streamed", "streamed by a worker"])
def test_processes_that_are_killed_go_on_to_the_same_bits(tmp_path, workers):
    (tmp_path / "images").mkdir()
    source, until = data(), 5
    if workers is not None:
        source, until = streamed(tmp_path / "images", workers), 3
        plain = replace(source.val, workers=0)
        source = replace(source, val=plain, test=plain)
    whole = together(_fragile, source, None, None)
    assert together(_fragile, source, tmp_path, until) == [None, None]
    (checkpoint,) = tmp_path.glob("stage.*.checkpoint")
    assert "others" in torch.load(checkpoint, weights_only=True)
    resumed = together(_fragile, source, tmp_path, None)
    assert all(same(again, first) for again, first in zip(resumed, whole, strict=True))
    assert same(*whole)


def _fragile(source, folder, until):
    torch.manual_seed(os.getpid())  # another process begins elsewhere
    return trained(source, dropout=0.3, norm=True, folder=folder, until=until)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (4, 2)])
def test_another_number_of_processes_goes_on_as_well(tmp_path, before, after):
    (whole,) = together(_plain, None, None, world=1)
    together(_plain, tmp_path, 5, world=before)
    resumed = together(_plain, tmp_path, None, world=after)
    for row, expected in zip(resumed[0][0], whole[0], strict=True):
        assert row == pytest.approx(expected, rel=1e-4, abs=1e-6)


def _plain(folder, until):
    return trained(data(), folder=folder, until=until)


class Broken(nn.Module):
    """Gives no numbers any more in the second process, from its third step on."""

    def __init__(self):
        super().__init__()
        self.inner, self.calls = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), 0

    def forward(self, images):
        self.calls += self.training
        broken = self.calls >= 3 and dist.is_initialized() and dist.get_rank() == 1
        return self.inner(images) * (float("nan") if broken else 1)


def test_all_stop_at_the_step_at_which_one_diverges():
    assert together(_diverging) == [("toy", 1, 3, "nan")] * 2


def _diverging():
    try:
        fit(Broken(), data(), Recipe(epochs=2, batch_size=8, lr=0.01), CPU, seed=0, stage="toy")
    except DivergenceError as problem:
        return problem.stage, problem.epoch, problem.step, problem.loss


@pytest.mark.parametrize("metric", ["accuracy", "matthews", "spearman"])
@pytest.mark.parametrize("count", [2, 1203])
def test_evaluation_counts_every_sample_once(metric, count):
    (alone,) = together(_evaluated, metric, count, world=1)
    for found in together(_evaluated, metric, count, world=3):
        assert found == pytest.approx(alone, rel=1e-6)


def _evaluated(metric, count):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 1 if metric == "spearman" else 2))
    images = torch.randint(256, (count, 4, 4, 1), dtype=torch.uint8)
    labels = torch.arange(count) % 2
    split = TensorSplit(images, labels.float() if metric == "spearman" else labels, *torch.ones(2, 1))
    return evaluate(model, split, task=Task(metric), share=ranks.share())


# What all agree on


def test_the_main_one_decides_and_its_mistakes_are_everyones():
    assert together(_decisions) == [(0, "no", "OSError", "[0]"), (0, "no", "ElsewhereError", "[0]")]


def _decisions():
    rank = dist.get_rank()

    def told(action):
        try:
            return action()
        except Exception as problem:
            return problem

    found = ranks.decided(lambda: rank)
    mistake = told(lambda: ranks.decided(lambda: _raise(UserError("no"))))
    failure = told(lambda: ranks.decided(lambda: _raise(OSError("full"))))
    missing = told(lambda: ranks.in_turn(lambda: _raise(UserError(f"[{rank}]"))))
    assert isinstance(mistake, UserError)
    assert isinstance(missing, UserError)
    return found, str(mistake), type(failure).__name__, str(missing)


def _raise(problem):
    raise problem


def test_what_only_another_process_misses_is_told_by_all():
    assert together(_missing_elsewhere) == ["process 1 has no data"] * 2


def _missing_elsewhere():
    def load():
        if dist.get_rank() == 1:
            raise UserError("process 1 has no data")

    try:
        ranks.in_turn(load)
    except UserError as problem:
        return str(problem)


# Whole runs


def test_a_batch_that_cannot_be_shared_out_is_refused_before_any_work(tmp_path):
    words = (*TINY, "baseline.batch_size=127", *places(tmp_path))
    (first, second) = together(command, *words)
    said = "error: baseline.batch_size=127: must be a multiple of 2, the number of processes\n"
    assert (first[0], first[2]) == (2, said)
    assert second == (2, "", "")  # the first alone speaks
    assert not (tmp_path / "outputs").exists()
    assert not (tmp_path / "results").exists()


def test_processes_with_different_settings_are_refused(tmp_path):
    (first, _) = together(_own_settings, *TINY, *places(tmp_path))
    assert first == (2, "error: the processes of this run have different settings, or find different data\n")


def _own_settings(*words):
    code, _, complaint = command(*words, f"seed={dist.get_rank()}")
    return code, complaint


def test_a_sweep_goes_on_after_a_run_that_diverged(tmp_path):
    words = ("-m", *TINY[:2], "trainer.threads=1", "finetune.lr=1e30,0.01", *places(tmp_path))
    (first, second) = together(command, *words)
    assert first[0] == second[0] == 1
    assert "sweep: 2 jobs, 1 failed" in first[1]
    (failed,) = (line for line in first[1].splitlines() if line.startswith("  FAILED"))
    assert "finetune.lr=1e+30" in failed
    assert "diverged in finetune, epoch 1, step " in failed
    assert second[1] == ""
    assert len(records.read_all(tmp_path / "results")) == 2


def test_runs_that_are_killed_end_as_if_nothing_had_happened(tmp_path):
    words = (*TINY, "target_flops=0.5")
    began = time.monotonic()
    assert [code for code, *_ in together(command, *words, *places(tmp_path / "first"))] == [0, 0]
    seconds = time.monotonic() - began
    expected = facts(tmp_path / "first")
    victims = start(command, *words, *places(tmp_path / "killed"))
    time.sleep(random.Random(0).uniform(0.4, 0.8) * seconds)
    for process, _ in victims:
        process.kill()
        process.join(60)
    assert [code for code, *_ in together(command, *words, *places(tmp_path / "killed"))] == [0, 0]
    assert facts(tmp_path / "killed") == expected
    stages = tmp_path / "killed" / "outputs" / "stages"
    assert not [*stages.rglob("*.checkpoint"), *stages.glob("*/.*")]


def test_a_process_that_fails_alone_ends_and_leaves_no_other_waiting(tmp_path):
    words = (*TINY, *places(tmp_path))
    (first, second) = together(_failing, *words)
    assert (first[0], second[0]) == (1, 1)
    for said, words in (
        (second[2], "process 1: out of memory ("),
        (first[2], "process 0: lost the others ("),
    ):
        assert any(line.startswith(f"error: {words}") for line in said.splitlines())  # libraries warn before
    assert not (tmp_path / "results" / "records").exists()


def _failing(*words):
    step = Training.step

    def heavy(self, *batch):
        if dist.get_rank() == 1 and self.progress.step == 2:
            torch.empty(10**16)
        step(self, *batch)

    Training.step = heavy
    try:
        return command(*words)
    finally:
        logging.shutdown()
        if dist.get_rank() == 1:
            dist.destroy_process_group()  # as the end of the process does
