"""What a run says before it begins."""

import pytest

from lpslim import outlook
from lpslim.cli import checked
from lpslim.outlook import Stage, account, duration, lines, total
from lpslim.plan import Step
from tests.composing import composed


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2.0 h"), (259_200, "3.0 days")],
)
def test_times_are_said_as_people_say_them(seconds, text):
    assert duration(seconds) == text


def test_a_stage_that_runs_share_counts_once():
    shared = Stage("baseline", "a", False, 200, 100.0)
    runs = [shared, Stage("prune", "b", False, 0, 0.0), shared, Stage("prune", "c", True, 0, 0.0)]
    assert total(runs) == "1 stages found, 2 to do: 200 epochs (400 if nothing were shared), about 100 s"
    assert total([Stage("prune", "c", True, 0, 0.0)]) == "1 stages found, 0 to do: 0 epochs"


def test_what_one_run_computed_and_another_found_was_computed_once():
    first = [Stage("baseline", "a", False, 200, 90.0), Stage("finetune", "b", False, 10, 5.0)]
    second = [Stage("baseline", "a", True, 200, 0.0), Stage("finetune", "c", False, 10, 5.0)]
    assert account(first) == "2 stages computed: 210 epochs, 95 s"
    both = account([*first, *second])
    assert both == "3 stages computed: 220 epochs (420 if nothing were shared), 100 s"
    assert account(second[:1]) == "0 stages computed: 0 epochs (200 if nothing were shared)"


def test_each_stage_has_a_line():
    drawn = lines([Stage("baseline", "abc", True, 1, 0.0), Stage("score", "def", False, 0, 0.0)])
    assert drawn == ["  baseline  abc  found  1 epoch", "  score     def  to do"]


def steps(folder, **epochs):
    return {
        name: Step(name, name, {"recipe": {"epochs": n}} if n else {}, folder / name)
        for name, n in epochs.items()
    }


@pytest.mark.parametrize(
    ("overrides", "finetune"),
    [
        (("target_flops=0.5",), (10, 5.0)),
        (("ratio=0.5",), (10, 10.0)),
        (("target_flops=0.5", "retrain=scratch_b"), (20, 10.0)),
        (("target_flops=0.5", "structure=weights"), (10, 10.0)),
    ],
)
def test_the_estimate_is_epochs_times_the_time_of_one(overrides, finetune, tmp_path, monkeypatch):
    monkeypatch.setattr(outlook, "_dense_epoch", lambda config, data: 1.0)
    (tmp_path / "sparsify").mkdir()
    planned = steps(tmp_path, baseline=30, sparsify=3, prune=0, finetune=10)
    found = {each.name: each for each in outlook.outlook(checked(composed(*overrides)), None, planned)}
    assert (found["baseline"].epochs, found["baseline"].seconds) == (30, 30.0)
    assert (found["sparsify"].done, found["sparsify"].seconds) == (True, 0.0)
    assert (found["prune"].epochs, found["prune"].seconds) == (0, 0.0)
    assert (found["finetune"].epochs, found["finetune"].seconds) == finetune
