"""Groups: equal keys but for the seed make one cell; what diverged or is outdated is in no mean."""

import statistics

import pytest

from lpslim.base.errors import UserError
from lpslim.experiment.records import VERSIONS
from reproduce.aggregate import best, by_pair, grouped, outdated, run_command, slug, to_show
from tests.reproduce import synthetic


def test_a_group_is_the_seeds_of_one_configuration_in_their_order():
    runs = [synthetic.record("a", 1), synthetic.record("b", 0), synthetic.record("a", 2, p=3.0)]
    groups = grouped(runs)
    assert [[run.seed for run in group.runs] for group in groups] == [[0, 1], [2]]
    assert groups[0].first is runs[1]


def test_means_are_those_of_the_runs():
    finals = [94.1, 94.3, 94.8]
    (group,) = grouped(synthetic.seeds("a", finals, dense=95.0))
    tuned, drop = group.accuracy("finetune", "last"), group.drop("last")
    assert (tuned.mean, tuned.sd) == pytest.approx((statistics.mean(finals), statistics.stdev(finals)))
    assert (drop.mean, drop.sd) == pytest.approx((95.0 - tuned.mean, tuned.sd))
    assert group.accuracy("finetune", "paper").mean == pytest.approx(tuned.mean + 0.2)
    assert (group.cost("flops_drop").mean, group.cost("params_drop").mean) == pytest.approx((60.6, 82.0))
    dense, pruned = (group.first.cost.dense.macs, 2), (group.first.cost.pruned.macs, 4)  # of an image, epochs
    passes = 3 * 45_000 * (dense[0] * dense[1] + pruned[0] * pruned[1])
    assert group.training().mean == pytest.approx(passes / 1e12)


def test_what_runs_share_counts_once_and_two_results_of_one_seed_are_refused():
    assert [len(g.runs) for g in grouped([synthetic.record("a"), synthetic.record("b")])] == [1]
    runs = [synthetic.record("a", seed, target_flops=t) for seed in (0, 1) for t in (0.5, 0.7)]
    assert [len(grouped(runs, stage)) for stage in ("baseline", "sparsify", "finetune")] == [1, 1, 2]
    other = synthetic.record("b").stages | {"finetune": "f" * 16}
    with pytest.raises(UserError, match=f"a/.*, b/{'f' * 16}: two results"):
        grouped([synthetic.record("a"), synthetic.record("b", stages=other)])


def test_groups_of_a_data_set_and_model_and_of_too_many_the_best():
    runs = [synthetic.record(), synthetic.record(p=3.0), synthetic.record(data=synthetic.DIGITS)]
    pairs = {pair: len(groups) for pair, groups in by_pair(runs).items()}
    assert pairs == {("cifar10", "vgg16"): 2, ("digits", "vgg16"): 1}
    assert slug(("../../x", "a b")) == "..-..-x_a-b"
    runs = [synthetic.record(p=p, final=final) for p, final in ((1.0, 91.0), (2.0, 93.0), (3.0, 92.0))]
    groups = grouped([*runs, synthetic.lost(p=4.0)])
    assert best(groups, "last", 4) is groups
    assert [g.first.accuracy["finetune"]["last"] for g in best(groups, "last", 2)] == [93.0, 92.0]


def test_runs_that_diverged_are_counted_but_in_no_mean():
    (group,) = grouped([*synthetic.seeds("a", [94.0, 94.6]), synthetic.lost("a", 2)])
    assert group.accuracy("finetune", "last").mean == pytest.approx(94.3)
    assert group.n == "2 (+1 diverged)"
    (group,) = grouped([synthetic.lost("a", 0), synthetic.lost("a", 1, "baseline")])
    assert (group.n, group.failure) == ("0 (+2 diverged)", "diverged (finetune, epoch 3; baseline, epoch 3)")


def test_a_record_is_outdated_by_its_code_or_its_rule(monkeypatch):
    monkeypatch.setitem(VERSIONS, "sparsify", 7)
    old = outdated(synthetic.record(versions={"sparsify": 6}))
    assert old.startswith("sparsify by code version 6, now 7")
    assert "on fingers" in outdated(synthetic.record(rule="on fingers"))
    assert outdated(synthetic.record()) == outdated(synthetic.record(**synthetic.NO_ADMM)) == ""


def test_outdated_records_and_those_without_a_validation_split_that_decides_are_left_out_and_named():
    name = "bert_glue/rte"
    found = [synthetic.record(name, versions={"prune": 9}), synthetic.record(name)]
    shown, (remark,) = to_show(found, "last", keep=False)
    assert shown == found[1:]
    assert name in remark
    assert run_command(name).endswith("seed=0,1,2,3,4")  # a small development set
    assert to_show(found, "last", keep=True)[0] == found
    assert to_show(shown, "last", keep=False) == (shown, [])
    runs = [synthetic.record("a"), *(synthetic.record(n, data={"val": 0}) for n in "ab")]
    assert to_show(runs, "last", keep=False) == (runs, [])
    shown, remarks = to_show(runs, "val", keep=False)
    assert shown == runs[:1]
    assert remarks == [f"Left out: {n} (no validation split, so no protocol=val)" for n in "ab"]
