"""Runs that are killed end as if nothing had happened; many at once do each stage once."""

import multiprocessing
import random
import shutil
import time

import pytest

from lpslim.base import files
from reproduce.tables import render
from tests.composing import ROOT
from tests.experiment.dying import PROCESSES, begin, die_at, ended, facts, finished, places

KILLED = -9
BUDGET = "target_flops=0.5"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Return what a run that nobody kills records, its seconds, and how many moments its writes have."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert ended(begin(*places(folder / "first"), BUDGET)) == 0  # the server starts with it
    began = time.monotonic()
    assert ended(begin(*places(folder), BUDGET, told=folder / "writes")) == 0
    seconds = time.monotonic() - began
    assert facts(folder) == facts(folder / "first")
    return facts(folder), seconds, int((folder / "writes").read_text())


def goes_on(folder, expected):
    """Whether the same command ends the run, redoes no finished stage, and gives the expected record."""
    before = finished(folder)
    assert ended(begin(*places(folder), BUDGET)) == 0
    after = finished(folder)
    assert {stage: after[stage] for stage in before} == before
    assert facts(folder) == expected
    stages = folder / "outputs" / "stages"
    assert not [*stages.rglob("*.checkpoint"), *stages.glob("*/.*")]  # nothing half-written stays
    assert not list((folder / "results").rglob(".*"))


def killed_by_the_clock(folder, undisturbed, draw):
    expected, seconds, _ = undisturbed
    victim = begin(*places(folder), BUDGET)
    time.sleep(draw.uniform(0, seconds))
    victim.kill()
    assert ended(victim) in (KILLED, 0)  # it may have been faster
    goes_on(folder, expected)


def killed_at_a_write(folder, undisturbed, moment):
    expected, _, _ = undisturbed
    assert ended(begin(*places(folder), BUDGET, at_write=moment)) == KILLED
    goes_on(folder, expected)


@pytest.mark.parametrize("seed", range(3))
def test_a_run_killed_at_any_moment_ends_as_if_nothing_had_happened(tmp_path, undisturbed, seed):
    killed_by_the_clock(tmp_path, undisturbed, random.Random(seed))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3, 28))
def test_a_run_killed_at_one_of_many_moments(tmp_path, undisturbed, seed):
    killed_by_the_clock(tmp_path, undisturbed, random.Random(seed))


@pytest.mark.parametrize("share", [0.15, 0.97, 0.999])  # a checkpoint, the run's folder, the record
def test_a_run_killed_in_a_write(tmp_path, undisturbed, share):
    killed_at_a_write(tmp_path, undisturbed, int(share * undisturbed[2]))


@pytest.mark.slow
def test_a_run_killed_in_any_write(tmp_path, undisturbed):
    for moment in range(0, undisturbed[2], 5):
        killed_at_a_write(tmp_path / str(moment), undisturbed, moment)


def test_a_run_killed_again_and_again_ends_at_last(tmp_path, undisturbed):
    expected, seconds, moments = undisturbed
    for share in (0.2, 0.3):  # whatever the machine's speed, it dies at these writes
        assert ended(begin(*places(tmp_path), BUDGET, at_write=int(share * moments))) == KILLED
    draw = random.Random(0)
    while not facts(tmp_path):
        victim = begin(*places(tmp_path), BUDGET)
        victim.join(draw.uniform(0.3, 0.8) * seconds)
        victim.kill()
        assert ended(victim) in (KILLED, 0)
    goes_on(tmp_path, expected)


def test_tables_killed_while_they_are_written_are_old_or_new(tmp_path):
    shutil.copytree(ROOT / "results" / "records", tmp_path / "records")
    render(tmp_path, "last")
    whole = {path.name: path.read_bytes() for path in (tmp_path / "tables").iterdir()}
    for moment in (5, 20):
        for path in (tmp_path / "tables").iterdir():
            path.write_text("old")
        painter = PROCESSES.Process(target=_render_and_die, args=(tmp_path, moment))
        painter.start()
        assert ended(painter) == KILLED
        states = {path.name: path.read_bytes() for path in (tmp_path / "tables").glob("[!.]*")}
        assert states.keys() == whole.keys()
        assert all(states[name] in (b"old", whole[name]) for name in whole)
        assert {states[name] == whole[name] for name in whole} == {True, False}


def _render_and_die(results, moment):
    die_at(moment)
    render(results, "last")


def test_eight_at_once_compute_each_stage_once(tmp_path):
    ratios = [round(0.1 * (1 + i), 1) for i in range(8)]
    together = [begin(*places(tmp_path), f"ratio={ratio}") for ratio in ratios]
    assert [ended(each) for each in together] == [0] * 8
    records = facts(tmp_path)
    assert sorted(record["config"]["ratio"] for record in records) == ratios
    assert len({record["stages"]["sparsify"] for record in records}) == 1
    logs = "".join(path.read_text() for path in (tmp_path / "outputs" / "runs").rglob("run.log"))
    trained = {stage: logs.count(f"{stage} epoch 1/1: ") for stage in ("baseline", "sparsify", "finetune")}
    assert trained == {"baseline": 1, "sparsify": 1, "finetune": 8}
    assert "waiting for process " in logs


def test_two_of_the_same_run_leave_one_record(tmp_path):
    twins = [begin(*places(tmp_path), BUDGET) for _ in range(2)]
    assert [ended(each) for each in twins] == [0, 0]
    assert len(facts(tmp_path)) == 1


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path):
    holder = PROCESSES.Process(target=_hold, args=(tmp_path / "stage.lock",))
    holder.start()
    while not (tmp_path / "stage.lock").exists() or not (tmp_path / "stage.lock").read_text():
        time.sleep(0.01)
    waiting = PROCESSES.Process(target=_take, args=(tmp_path / "stage.lock", tmp_path / "taken"))
    waiting.start()
    time.sleep(0.3)
    assert not (tmp_path / "taken").exists()
    holder.kill()
    assert ended(waiting, within=10) == 0
    assert (tmp_path / "taken").exists()


def test_a_lock_ends_with_its_block_though_a_process_forked_in_it_lives_on(tmp_path):
    sleeping = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
    with store.locked(tmp_path / "stage.lock"):
        sleeping.start()
    taking = PROCESSES.Process(target=_take, args=(tmp_path / "stage.lock", tmp_path / "taken"))
    taking.start()
    try:
        assert ended(taking, within=10) == 0
    finally:
        sleeping.kill()


def _hold(path):
    with store.locked(path):
        time.sleep(600)


def _take(path, mark):
    with store.locked(path):
        mark.write_text("")
