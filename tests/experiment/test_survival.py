"""Survival: runs that are killed at any moment, and runs that want the same stages at once."""

import random
import time

import pytest

from tests.experiment.dying import begin, ended, facts, finished, places

KILLED = -9
BUDGET = "target_flops=0.5"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Return what a run that nobody kills records, its seconds, and how many moments its writes have."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert ended(begin(*places(folder / "first"), BUDGET)) == 0  # the server starts with it
    began = time.monotonic()
    assert ended(begin(*places(folder / "second"), BUDGET, writes=folder / "writes")) == 0
    seconds = time.monotonic() - began
    assert facts(folder / "second") == facts(folder / "first")
    return facts(folder / "first"), seconds, int((folder / "writes").read_text())


def goes_on(folder, expected):
    """Assert that the same command ends the run, redoes no finished stage, and gives the expected record."""
    before = finished(folder)
    assert ended(begin(*places(folder), BUDGET)) == 0
    after = finished(folder)
    assert {stage: after[stage] for stage in before} == before
    assert facts(folder) == expected
    stages = folder / "outputs" / "stages"
    assert not [*stages.rglob("*.checkpoint"), *stages.glob("*/.*")]  # nothing half-written stays
    assert not list((folder / "results").rglob(".*"))


def few(values, more):
    return [*values, *(pytest.param(value, marks=pytest.mark.slow) for value in more)]


@pytest.mark.parametrize("seed", few(range(1), range(1, 25)))
def test_a_run_killed_at_any_moment_ends_as_if_nothing_had_happened(tmp_path, undisturbed, seed):
    expected, seconds, _ = undisturbed
    victim = begin(*places(tmp_path), BUDGET)
    time.sleep(random.Random(seed).uniform(0, seconds))
    victim.kill()
    assert ended(victim) in (KILLED, 0)  # it may have been faster
    goes_on(tmp_path, expected)


# in the write of the record; again and again, going on from its checkpoints
@pytest.mark.parametrize("shares", few([[0.999], [0.2, 0.3, 0.3]], [[0.15], *([i / 40] for i in range(40))]))
def test_a_run_killed_in_writes_ends_at_last(tmp_path, undisturbed, shares):
    expected, _, moments = undisturbed
    for share in shares:
        assert ended(begin(*places(tmp_path), BUDGET, at_write=int(share * moments))) == KILLED
    goes_on(tmp_path, expected)


def test_four_at_once_compute_each_stage_once(tmp_path):
    ratios = [0.2, 0.5, 0.7]
    together = [begin(*places(tmp_path), f"ratio={ratio}") for ratio in (*ratios, 0.7)]  # two are the same
    assert [ended(process) for process in together] == [0] * 4
    records = facts(tmp_path)
    assert sorted(record["config"]["ratio"] for record in records) == ratios
    assert len({record["stages"]["sparsify"] for record in records}) == 1
    logs = "".join(path.read_text() for path in (tmp_path / "outputs" / "runs").rglob("run.log"))
    trained = {stage: logs.count(f"{stage} epoch 1/1: ") for stage in ("baseline", "sparsify", "finetune")}
    assert trained == {"baseline": 1, "sparsify": 1, "finetune": 3}
    assert "waiting for another process" in logs
