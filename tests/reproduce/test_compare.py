"""What counts as a published row, and what is compared with what."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import synthetic
from omegaconf import OmegaConf

from lpslim.base.errors import UserError
from lpslim.experiment import records
from lpslim.experiment.statistics import Summary, summary
from reproduce import published
from reproduce.claims import BAND, EXPERIMENTS, claim, departures
from reproduce.evidence import Evidence
from reproduce.groups import dense_networks, effective, grouped, sparsified
from reproduce.labels import FAMILIES, family, labels
from reproduce.published import Row

VISION = ("vgg16_cifar10", "resnet_cifar10", "resnet50_imagenet")
NAME = "vgg16_cifar10/flops60_cos350"  # published: 94.36, from 93.96
RESNET = "resnet_cifar10/resnet56_flops58_cos350"  # published: 93.98, the dense network is not


def row_of(experiment: str) -> Row:
    rows = published.read(experiment.split("/")[0])
    return next(row for row in rows if row.experiment == experiment)


def claim_of(experiment: str, found, column="top1", selection="last"):
    row = row_of(experiment)
    return claim(row, column, published.read(row.table), Evidence(found), selection)


def ours() -> list[Row]:
    return [row for table in VISION for row in published.read(table) if row.method == "ours"]


# The published tables and the experiment files


def test_every_row_of_ours_has_one_experiment_file_and_the_other_way_round():
    named = [row.experiment for row in ours()]
    filed = [
        str(path.relative_to(EXPERIMENTS).with_suffix(""))
        for table in VISION
        for path in (EXPERIMENTS / table).glob("*.yaml")
    ]
    assert len(named) == 27
    assert sorted(named) == sorted(filed)


@pytest.mark.parametrize("row", ours(), ids=lambda row: row.experiment)
def test_an_experiment_file_says_what_its_row_says(row):
    file = EXPERIMENTS / f"{row.experiment}.yaml"
    package, command, source, *_ = file.read_text().splitlines()
    assert package == "# @package _global_"
    assert command == f"# python run.py -m experiment={row.experiment} seed=0,1,2"
    assert f"top-1 {row.cells['top1']}, FLOPs drop {row.cells['flops_drop']}" in source
    content = OmegaConf.to_container(OmegaConf.load(file))
    chosen = {key: value for choice in content["defaults"] for key, value in choice.items()}
    model = f"resnet{row.place['depth']}" if "depth" in row.place else row.table.split("_")[0]
    assert chosen == {
        "override /model": model,
        "override /dataset": row.table.split("_")[-1],
        "override /schedule": {"cos": "cosine", "step": "step"}[row.place["schedule"]],
    }
    assert content["name"] == row.experiment
    assert 100 * content["target_flops"] == pytest.approx(float(row.cells["flops_drop"]))
    assert content["finetune"] == {"epochs": int(row.place["finetune_epochs"])}


def test_other_methods_name_no_experiment():
    others = [row for table in published.TITLES for row in published.read(table) if row.method != "ours"]
    assert others
    assert not any(row.experiment for row in others)


def test_glue_is_one_row_per_task_and_method():
    rows = published.read("bert_glue")
    assert len(rows) == 8 * 9
    assert [row.experiment for row in rows if row.experiment] == [
        f"bert_glue/{task}" for task in ("mnli", "qqp", "qnli", "sst2", "cola", "stsb", "mrpc", "rte")
    ]
    scores = {(row.place["task"], row.method): row.cells["score"] for row in rows}
    assert scores["rte (accuracy)", "ours"] == "74.2"
    assert scores["cola (Matthews)", "PD-BERT"] == "NA"


def test_unknown_table():
    with pytest.raises(UserError, match="table=svhn: must be one of vgg16_cifar10"):
        published.read("svhn")


# What a claim is


def test_without_records_a_cell_names_the_command_that_fills_it():
    found = claim_of(NAME, [])
    assert (found.published, found.measured, found.empty) == ("94.36", (), "not run")
    assert found.command == f"python run.py -m experiment={NAME} seed=0,1,2"
    assert (EXPERIMENTS / f"{NAME}.yaml").exists()


def test_cells_that_nothing_fills_say_why():
    rows = published.read("resnet50_imagenet")
    assert claim(rows[2], "top5", rows, Evidence([]), "last").empty == "not recorded"
    assert claim(rows[0], "top1", rows, Evidence([]), "last").empty == "another method"
    rows = published.read("bert_glue")
    assert claim(rows[-1], "score", rows, Evidence([]), "last").empty == "needs every task"
    rows = published.read("vgg16_cifar10")
    assert claim(rows[0], "flops_drop", rows, Evidence([]), "last").empty == "by definition"
    assert claim(rows[0], "top1", rows, Evidence([]), "last").empty == "measured with any of its rows"


def test_an_experiment_without_a_file_has_no_command(monkeypatch, tmp_path):
    monkeypatch.setattr("reproduce.claims.EXPERIMENTS", tmp_path)
    found = claim_of(NAME, [])
    assert (found.empty, found.command) == ("no experiment file yet", "")


def test_measured_on_the_original_data_is_compared_directly():
    found = claim_of(NAME, synthetic.seeds(NAME, [94.1, 94.3, 94.5]))
    (one,) = found.measured
    assert one.value == summary([94.1, 94.3, 94.5])
    assert one.difference == pytest.approx(94.3 - 94.36)
    assert one.verdict == "within"
    assert (found.empty, found.command, found.departing) == ("", "", ())


@pytest.mark.parametrize(
    ("final", "expected"), [(94.36 - BAND - 0.01, "below"), (94.36 + BAND + 0.01, "above")]
)
def test_outside_the_band(final, expected):
    assert claim_of(NAME, [synthetic.record(NAME, final=final)]).measured[0].verdict == expected


def test_the_protocol_chooses_the_accuracy():
    runs = [synthetic.record(NAME, final=94.0)]
    means = [claim_of(NAME, runs, selection=each).measured[0].value.mean for each in ("last", "val", "paper")]
    assert means == pytest.approx([94.0, 94.1, 94.2])


def test_drops_are_measured_too():
    found = claim_of(NAME, [synthetic.record(NAME)], "params_drop")
    assert found.measured[0].value == Summary(82.0, None, 1)
    assert found.measured[0].difference == pytest.approx(82.0 - 82.2)
    assert found.measured[0].verdict == ""


def test_on_other_data_the_drops_are_compared():
    runs = synthetic.seeds(NAME, [83.4, 83.6], data=synthetic.JPEG, dense=83.0)
    (one,) = claim_of(NAME, runs).measured
    assert one.value.mean == pytest.approx(83.5)
    assert one.difference == pytest.approx((83.5 - 83.0) - (94.36 - 93.96))
    assert one.verdict == "drops compared: within"


def test_on_other_data_without_a_published_dense_network_nothing_is_compared():
    runs = [synthetic.record(RESNET, data=synthetic.JPEG, **{"model.name": "resnet56"})]
    (one,) = claim_of(RESNET, runs).measured
    assert (one.difference, one.verdict) == (None, "not comparable: other data source")


def test_two_data_sources_are_two_measurements():
    runs = [synthetic.record(NAME), synthetic.record(NAME, data=synthetic.JPEG)]
    assert [each.value.n for each in claim_of(NAME, runs).measured] == [1, 1]


def test_a_record_that_differs_never_fills_the_row():
    runs = synthetic.seeds(NAME, [94.3, 94.4], differs={"epoch_scale": [1, 0.05]}, epoch_scale=0.05)
    found = claim_of(NAME, runs)
    assert (found.measured, found.empty) == ((), "not run")
    assert found.command
    (one,) = found.departing
    assert (one.value.n, one.difference, one.verdict) == (2, None, "")


def test_departures_leave_out_where_a_run_was_done():
    differs = {
        "M": [1, None],
        "epoch_scale": [1, 0.05],
        "trainer.compile": [False, True],
        "dataset.root": ["a", "b"],
    }
    (group,) = grouped([synthetic.record(NAME, differs=differs)])
    assert departures(group) == "M=null, epoch_scale=0.05"
    (group,) = grouped([synthetic.record(NAME, differs={"trainer.compile": [False, True]})])
    assert departures(group) == "trainer.compile=true"


def test_an_older_version_of_the_experiment_file_is_not_compared():
    runs = [synthetic.record(NAME, lamb=1e-4), synthetic.record(NAME, lamb=2e-4)]
    verdicts = [each.verdict for each in claim_of(NAME, runs).measured]
    assert verdicts == ["not comparable: 2 configurations under this name"] * 2


def test_another_experiment_of_the_same_configuration_is_not_the_row():
    assert claim_of(NAME, [synthetic.record("adhoc", final=94.36)]).measured == ()


def test_the_dense_row_counts_each_network_once():
    runs = [synthetic.record(NAME, s, dense=94.0 + s) for s in (0, 1)]
    runs += [synthetic.record("vgg16_cifar10/flops60_step100", s, dense=94.0 + s, lamb=1.0) for s in (0, 1)]
    rows = published.read("vgg16_cifar10")
    (one,) = claim(rows[0], "top1", rows, Evidence(runs), "last").measured
    assert one.value == summary([94.0, 95.0])
    assert one.verdict == "above"
    assert one.difference == pytest.approx(94.5 - 93.96)


# Groups and their names


def test_groups_differ_in_more_than_the_seed_and_the_places():
    runs = [
        synthetic.record("a", 0),
        synthetic.record("a", 1, work_dir="elsewhere"),
        synthetic.record("a", 2, p=3.0),
    ]
    assert [[run.seed for run in each.records] for each in grouped(runs)] == [[0, 1], [2]]


def test_one_run_found_under_two_names_counts_once():
    runs = [synthetic.record("a", key="1234"), synthetic.record("b", key="1234")]
    assert [len(each.records) for each in grouped(runs)] == [1]


def test_two_results_of_one_configuration_and_seed_are_refused():
    runs = [synthetic.record("a", key="1234"), synthetic.record("a", key="5678")]
    with pytest.raises(UserError, match="a/1234, a/5678: 2 results of one configuration and seed"):
        grouped(runs)


def test_counting_rules_and_data_are_not_mixed():
    other = {"rule": "another", "dense": {}, "pruned": {}, "flops_drop": 1.0, "params_drop": 1.0}
    runs = [
        synthetic.record("a"),
        synthetic.record("a", 1, cost=other),
        synthetic.record("a", 2, data=synthetic.JPEG),
    ]
    assert len(grouped(runs)) == 3


def test_settings_without_effect_are_left_out():
    admm = effective(synthetic.record(target_flops=0.5).settings)
    assert "ratio" not in admm
    assert "p" in admm
    assert "ratio" in effective(synthetic.record().settings)
    assert "ratio" in effective(
        synthetic.record(target_flops=0.5, p=0.0).settings
    )  # L0 keeps so many weights
    none = effective(synthetic.record(**{"regularizer.penalty": "none"}).settings)
    assert not {"p", "M", "rho", "lamb", "criterion.weights", "regularizer.form"} & set(none)


def test_networks_before_pruning_count_once():
    runs = [synthetic.record("a", target_flops=each) for each in (0.5, 0.7)]
    assert len(grouped(runs)) == 2
    assert len(dense_networks(runs)) == len(sparsified(runs)) == 1
    assert sparsified([synthetic.record(**{"regularizer.penalty": "none"})]) == []


BARE = {"regularizer.penalty": "none"}
LABELS = [
    ({}, "Lp p=5, M=1"),
    ({"M": None}, "Lp p=5, no cap"),
    ({"p": 2.5, "M": 0.5}, "Lp p=2.5, M=0.5"),
    ({"p": 1.0}, "L1"),
    ({"p": 1.0, "M": 0.5}, "L1, M=0.5"),
    ({"p": 0.0}, "L0"),
    ({"regularizer.penalty": "none"}, "no ADMM (magnitude)"),
    ({"criterion.name": "random"}, "Lp p=5, M=1, random choice"),
    ({"structure": "weights"}, "Lp p=5, M=1, single weights"),
    ({**BARE, "retrain": "scratch_e"}, "no ADMM (magnitude), from scratch (E)"),
    ({**BARE, "criterion.across": "uniform"}, "filter L1 norm, the same share of every layer"),
    (
        {**BARE, "criterion.name": "chip", "criterion.across": "uniform"},
        "CHIP, the same share of every layer",
    ),
    (
        {**BARE, "criterion.name": "random", "criterion.widths": "magnitude"},
        "random choice, widths by magnitude",
    ),
    (
        {"regularizer.penalty": "bn_scale", "criterion.name": "bn_scale", "criterion.across": "raw"},
        "network slimming",
    ),
]
KINDS = {
    "ADMM": [{}, {"M": None}, {"p": 0.0}],
    "rival": [
        {**BARE, "criterion.name": "hrank"},
        {**BARE, "criterion.across": "uniform"},
        {"regularizer.penalty": "bn_scale", "criterion.name": "bn_scale"},
    ],
    "control": [BARE, {**BARE, "criterion.name": "random"}, {**BARE, "retrain": "scratch_b"}],
    "unstructured": [{"structure": "weights"}],
}


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_table_sets_rivals_and_controls_apart(kind):
    assert {family(synthetic.record(**changes).settings) for changes in KINDS[kind]} == {kind}


def test_settings_that_came_later_do_not_part_old_records_from_new():
    new, old = synthetic.record(seed=0), synthetic.record(seed=1)
    for key in records.LATER:
        *parts, name = key.split(".")
        inner = old.config
        for part in parts:
            inner = inner[part]
        del inner[name]
    (group,) = grouped([new, old])
    assert len(group.records) == 2


@pytest.mark.parametrize(("changes", "expected"), LABELS)
def test_labels(changes, expected):
    assert labels(grouped([synthetic.record(**changes)])) == [expected]


def test_labels_tell_alike_configurations_apart():
    changes = [{"ratio": 0.5}, {"ratio": 0.7}, {"p": 1.0}, {"data": synthetic.JPEG, "ratio": 0.7}]
    assert labels(grouped([synthetic.record(**each) for each in changes])) == [
        "Lp p=5, M=1, ratio=0.5, on torchvision batches",
        "Lp p=5, M=1, ratio=0.7, on torchvision batches",
        "L1",
        "Lp p=5, M=1, ratio=0.7, on image folder cifar10_jpeg",
    ]


def test_labels_name_the_weights_scored_where_both_occur():
    changes = [{}, {"criterion.weights": "W"}, {"regularizer.penalty": "none"}]
    assert labels(grouped([synthetic.record(**each) for each in changes])) == [
        "Lp p=5, M=1, scored on Z",
        "Lp p=5, M=1, scored on W",
        "no ADMM (magnitude)",
    ]


def test_the_paper_folder_is_the_whole_of_the_published_tables():
    assert sorted(path.stem for path in Path(published.FOLDER).glob("*.csv")) == sorted(
        f"table_{table}" for table in published.TITLES
    )
    for table in VISION:  # blocks are in order, as printed
        places = [(int(row.place.get("depth", 0)), int(row.place["block"])) for row in published.read(table)]
        assert all(first <= second for first, second in pairwise(places))
