"""Published tables: every row of the paper's method has one experiment file, which says what the row says."""

import pytest
from omegaconf import OmegaConf

from reproduce import published
from reproduce.published import TITLES, dense_of, read, rows_of
from tests.composing import CONF, composed

EXPERIMENTS = CONF / "experiment"
ROWS = [row for table in TITLES for row in read(table)]
OURS = [row for row in ROWS if row.experiment and row.table != "bert_glue"]


def test_every_row_of_ours_has_one_experiment_file_and_the_other_way_round():
    names = [row.experiment for row in ROWS if row.experiment]
    paths = [path for table in TITLES for path in (EXPERIMENTS / table).glob("*.yaml")]
    assert len(names) == 27 + 8
    assert sorted(names) == sorted(str(path.relative_to(EXPERIMENTS).with_suffix("")) for path in paths)
    assert {row.method for row in ROWS if row.experiment} == {published.OURS}


@pytest.mark.parametrize("row", OURS, ids=lambda row: row.experiment)
def test_an_experiment_file_says_what_its_row_says(row):
    config = composed(f"experiment={row.experiment}")
    own = OmegaConf.load(EXPERIMENTS / f"{row.experiment}.yaml")
    assert (own.name, own.finetune) == (row.experiment, {"epochs": int(row.place["finetune_epochs"])})
    model = f"resnet{row.place['depth']}" if "depth" in row.place else row.table.split("_")[0]
    assert (config.model.name, config.dataset.name) == (model, row.table.split("_")[-1])
    assert config.finetune.schedule == {"cos": "cosine", "step": "step"}[row.place["schedule"]]
    assert config.finetune.epochs == int(row.place["finetune_epochs"])
    assert 100 * config.target_flops == pytest.approx(float(row.cells["flops_drop"]))


def test_glue_is_one_row_per_task_and_method():
    rows = {(row.place["task"], row.method): row for row in read("bert_glue")}
    assert len(rows) == 8 * 9
    assert rows["rte (acc)", "ours"].accuracy == 74.2
    assert rows["cola (mcc)", "PD-BERT"].accuracy is None  # NA
    assert dense_of(rows["rte (acc)", "ours"], list(rows.values())) is rows["rte (acc)", "BERT-base"]


def test_what_is_published_of_a_network_leaves_out_the_dense_one():
    assert len(rows_of(("cifar10", "vgg16"))) == len(read("vgg16_cifar10")) - 1
    assert {row.place["depth"] for row in rows_of(("cifar10", "resnet110"))} == {"110"}
