"""Comparisons: what is compared with what, and the verdict on it."""

import pytest

from reproduce.aggregate import grouped
from reproduce.compare import comparable, pairs
from tests.reproduce import synthetic


def paired(*found):
    return {pair.name: (pair.difference, pair.verdict) for pair in pairs(grouped(found), "last")}


def test_the_papers_method_is_paired_by_seed_with_every_other_one_of_its_conditions():
    """The seeds scatter by far more than the methods differ, and pairing takes that away."""
    ours = synthetic.seeds("a/lp", [93.0, 91.0, 92.0, 90.0])
    theirs = {
        "worse": ([92.5, 90.6, 91.4, 89.5], {"p": 1.0}, (0.5, "Lp better")),
        "better": (
            [93.5, 91.6, 92.4],
            {"p": 2.0, "finetune.epochs": 0, "regularizer.train.epochs": 2},  # as many in all
            (-0.5, "Lp worse"),
        ),
        "alike": ([93.5, 90.4, 92.2], {"M": None, "trainer.compile": True}, (-0.1 / 3, "inside the noise")),
        "one": ([91.0], {"lamb": 2e-4}, (2.0, "one seed")),
    }
    found = [*ours, synthetic.lost("a/lost", retrain="scratch_e", method="lost")]
    for name, (finals, changes, _) in theirs.items():
        found += synthetic.seeds(f"a/{name}", finals, method=name, **changes)
    found += [synthetic.record("a/late", 9, method="late", **{"criterion.name": "fpgm"})]
    result = paired(*found)
    for name, (finals, _, (mean, verdict)) in theirs.items():
        assert (result[name][0].mean, result[name][0].n) == (pytest.approx(mean), len(finals))
        assert result[name][1] == verdict
    assert result["lost"] == (None, "diverged (finetune, epoch 3)")
    assert result["late"] == (None, "no seed in common")
    assert len(result) == 6


def test_a_method_is_paired_with_the_papers_of_its_arithmetic_if_there_is_one():
    other = {"trainer.precision": "fp32", "trainer.compile": True}
    runs = [*synthetic.seeds("a/lp", [93.0, 92.0]), synthetic.record(final=93.3, **other)]
    runs += [synthetic.record(final=93.1, method="L1", p=1.0, **other)]
    runs += [synthetic.record(final=92.5, method="L0", p=0.0, **{"trainer.precision": "bf16"})]
    found = {name: round(difference.mean, 6) for name, (difference, _) in paired(*runs).items()}
    assert found == {"L1": 0.2, "L0": 0.5, "Lp p=5, M=1, trainer.precision=fp32": -0.3}


@pytest.mark.parametrize(
    "changes",
    [{"target_flops": 0.5}, {"model.name": "resnet20"}, {"finetune.epochs": 7}, {"epoch_scale": 0.1},
     {"data": synthetic.JPEG}, {"ratio": 0.7}, {"protected": ["a"]},
     {"equal_epochs": False, "regularizer.name": "none"}],
)  # fmt: skip
def test_what_differs_in_more_than_the_method_is_not_comparable(changes):
    runs = [synthetic.record(), synthetic.record(p=1.0, method="L1", **changes)]
    assert (len(comparable(grouped(runs))), paired(*runs)) == (2, {})


def test_epochs_in_all_are_counted_as_scaled():
    lengths = [(20, 1), (10, 2)]  # a tenth of the first, the whole of the second: 3 epochs
    runs = [synthetic.record(p=p, epoch_scale=0.1, **{"finetune.epochs": a, "regularizer.train.epochs": b})
            for p, (a, b) in enumerate(lengths, 4)]  # fmt: skip
    assert len(comparable(grouped(runs))) == 1


def test_a_setting_younger_than_a_record_has_its_default_and_of_a_target_the_ratio_means_nothing():
    old, new = synthetic.record(target_flops=0.5), synthetic.record(target_flops=0.5, p=1.0, ratio=0.9)
    del old.config["equal_epochs"], old.config["round_to"], old.config["regularizer"]["form"]
    assert len(comparable(grouped([old, new]))) == len(pairs(grouped([old, new]), "last")) == 1
    other = synthetic.record(target_flops=0.5, **{"regularizer.options": {"x": 1}})
    assert pairs(grouped([other, new]), "last") == []  # not the paper's constants
