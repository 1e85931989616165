"""Claims: what counts as a published row, and how it is judged."""

import pytest

from lpslim.experiment.records import Samples
from lpslim.experiment.statistics import summary
from reproduce.claims import claims, footnote, is_original
from reproduce.published import read
from reproduce.tables import overview_line
from tests.reproduce import synthetic
from tests.reproduce.synthetic import NAME

OTHER = "vgg16_cifar10/flops60_step100"
RESNET = "resnet_cifar10/resnet56_flops58_cos350"  # published: 93.98; the dense network is not


def claims_of(experiment, *found, protocol="last"):
    """Return the claims of an experiment's row, or of the dense network with its table's name."""
    rows = read(experiment.split("/")[0])
    row = next(row for row in rows if row.experiment == experiment or row.is_dense > ("/" in experiment))
    runs = {name: [run for run in found if run.experiment == name] for name in (NAME, OTHER, RESNET, "adhoc")}
    return claims(row, rows, runs, protocol)


def test_rows_that_are_not_measured_say_why():
    (claim,) = claims_of(NAME)
    assert claim.status == "not run"
    assert (claim.group, claim.measured, claim.difference) == (None, {}, None)
    rows = read("bert_glue")
    status = [claims(row, rows, {}, "last")[0].status for row in (*rows[:2], rows[-9], rows[-1])]
    assert status[:2] == ["not run: measured with its rows", "published only"]
    assert status[2:] == ["not run", "average: needs all tasks"]


def test_measured_on_the_original_data_is_compared_directly():
    (claim,) = claims_of(NAME, *synthetic.seeds(NAME, [94.1, 94.3, 94.5]))
    assert claim.measured["top1"] == summary([94.1, 94.3, 94.5])
    assert claim.measured["params_drop"].mean == pytest.approx(82.0)
    assert (claim.status, claim.difference) == ("within", pytest.approx(94.3 - 94.36))
    (claim,) = claims_of(NAME, claim.group.first, protocol="paper")
    assert claim.measured["top1"].mean == pytest.approx(94.1 + 0.2)


@pytest.mark.parametrize(("more", "status"), [(-0.31, "below"), (0.3, "within"), (0.31, "above")])
def test_the_band_decides(more, status):
    assert claims_of(NAME, synthetic.record(NAME, final=94.36 + more))[0].status == status


def test_on_other_data_drops_are_compared_where_the_dense_network_is_published():
    (claim,) = claims_of(NAME, *synthetic.seeds(NAME, [83.4, 83.6], data=synthetic.JPEG, dense=83.0))
    assert claim.difference == pytest.approx((83.5 - 83.0) - (94.36 - 93.96))
    assert claim.status == "drops compared: within"
    (claim,) = claims_of(RESNET, synthetic.record(RESNET, data=synthetic.JPEG))
    assert (claim.difference, claim.status) == (None, "not comparable: other data source")
    both = synthetic.record(NAME), synthetic.record(NAME, data=synthetic.JPEG)
    assert [claim.measured["top1"].n for claim in claims_of(NAME, *both)] == [1, 1]


def test_runs_with_other_settings_never_fill_the_row():
    changed = {"epoch_scale": [1.0, 0.05], "M": [1.0, None]}
    row, other = claims_of(NAME, *synthetic.seeds(NAME, [94.3, 94.4], differs=changed, M=None))
    assert row.status == "not run as configured"
    assert other.measured["top1"].n == 2
    assert (other.difference, other.status) == (None, "other settings: M=null, epoch_scale=0.05")
    assert claims_of(NAME, synthetic.record("adhoc", final=94.36))[0].group is None


def test_neither_other_versions_of_the_file_nor_of_the_code_are_compared():
    for claim in claims_of(NAME, synthetic.record(NAME), synthetic.record(NAME, lamb=2e-4)):
        assert (claim.difference, claim.status) == (None, "not comparable: 2 configurations under this name")
    both = synthetic.record(NAME, versions={"prune": 9}), synthetic.record(NAME, final=94.4)
    old, new = claims_of(NAME, *both)
    assert old.status.startswith("† not comparable: prune by code version 9")
    assert (old.difference, new.status) == (None, "within")


def test_a_row_run_in_other_arithmetic_is_judged_beside():
    native, other = {"trainer.precision": "bf16"}, {"trainer.precision": "fp32", "trainer.compile": True}
    runs = [synthetic.record(NAME, final=94.4, **native), synthetic.record(NAME, 1, final=93.0, **other)]
    statuses = [claim.status for claim in claims_of(NAME, *runs)]
    assert statuses == [
        "trainer.precision=bf16, trainer.compile=false: within",
        "trainer.precision=fp32, trainer.compile=true: below",
    ]
    (claim,) = claims_of(NAME, *runs[:1])
    assert claim.status == "within"
    runs.append(synthetic.record(NAME, 2, final=93.2, **other))
    line = overview_line("VGG-16", [claims_of(NAME, *runs)])  # one row, judged by the arithmetic of two seeds
    assert (line["As configured"], line["Verdict"]) == ("1 of 1", "0 of 1 within")
    assert line["Difference"] == pytest.approx(93.1 - 94.36)
    changed = [
        claim.status for claim in claims_of(NAME, runs[0], synthetic.record(NAME, 1, lamb=2e-4, **other))
    ]
    assert changed == ["not comparable: 2 configurations under this name"] * 2
    dense = claims_of("vgg16_cifar10", runs[0], synthetic.record(OTHER, p=3.0, **other))
    assert [claim.status.rpartition(": ")[2] for claim in dense] == ["within", "within"]


def test_runs_that_all_diverged_say_where():
    (claim,) = claims_of(NAME, synthetic.lost(NAME))
    assert (claim.status, claim.measured, claim.difference) == ("diverged (finetune, epoch 3)", {}, None)
    _, other = claims_of(NAME, synthetic.lost(NAME, stage="baseline", differs={"p": [5.0, 3.0]}))
    assert other.status == "other settings: p=3; diverged (baseline, epoch 3)"


def test_the_dense_row_counts_each_network_of_its_rows_once():
    runs = [synthetic.record(NAME, s, dense=94.0 + s) for s in (0, 1)]
    runs += [synthetic.record(OTHER, s, dense=94.0 + s, lamb=1.0) for s in (0, 1)]
    (claim,) = claims_of("vgg16_cifar10", *runs, synthetic.lost(NAME, 2, dense=80.0))
    assert claim.measured == {"top1": summary([94.0, 95.0])}
    assert (claim.status, claim.difference) == ("above", pytest.approx(94.5 - 93.96))
    for run in (synthetic.lost(NAME), synthetic.record(NAME, differs={"p": [5, 3]})):
        assert claims_of("vgg16_cifar10", run)[0].group is None
    (claim,) = claims_of("vgg16_cifar10", synthetic.record(NAME, data=synthetic.JPEG))
    assert (claim.difference, claim.status) == (None, "not comparable: other data source")


@pytest.mark.parametrize(
    ("name", "train", "test", "original"),
    [("imagenet", 1_281_067, 50_000, True), ("imagenet", 100_000, 50_000, False), ("rte", 2_390, 277, True),
     ("digits", 1, 1, False), ("cifar10", 49_900, 10_000, False)],
)  # fmt: skip
def test_which_data_are_those_of_the_paper(name, train, test, original):
    data = {"source": "x", "fingerprint": "a", "metric": "f1", "train": train, "val": 100, "test": test}
    assert is_original(Samples(name=name, **data)) is original


def test_a_lossless_copy_of_cifar10_counts_with_a_footnote_if_it_is_whole():
    copy = {"source": "lossless copy, 98 of 60000 images replaced"}
    (claim,) = claims_of(NAME, synthetic.record(NAME, final=94.4, data=copy))
    assert claim.status == "within"
    told = "cifar10: lossless copy, 98 of 60000 images replaced by JPEG copies; counts as the paper's data"
    assert footnote(claim.group.first.data) == told
    part = synthetic.record(NAME, data={**copy, "test": 9_000}).data
    assert (is_original(part), footnote(part)) == (False, "")
    others = synthetic.record(NAME), synthetic.record(data=synthetic.DIGITS)
    assert [footnote(run.data) for run in others] == ["", ""]
