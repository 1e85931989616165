"""The plan of a run: which stages, which keys, and that stored results are still found."""

from types import SimpleNamespace

import pytest

from lpslim.base import registry
from lpslim.cli import checked
from lpslim.experiment import records
from lpslim.experiment.keys import plan
from tests.composing import ROOT, composed

DATA = SimpleNamespace(fingerprint="f" * 64, reading={})
RECORDS = [r for r in records.read_all(ROOT / "results") if not r.differs]


def keys(*overrides):
    return {name: step.key for name, step in plan(checked(composed(*overrides)), DATA).items()}


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: f"{r.experiment}-{r.seed}")
def test_the_plan_finds_the_stages_of_every_record_that_was_kept(record):
    config = checked(composed(f"experiment={record.experiment}", f"seed={record.seed}"))
    data = lookup.find("data", config.dataset.source)
    reading = getattr(data, "reading", lambda _: {})(config.dataset)
    found = plan(config, SimpleNamespace(fingerprint=record.data["fingerprint"], reading=reading))
    planned = {name: step.key for name, step in found.items()}
    assert {name: planned[name] for name in record.stages} == record.stages


def test_cuda_graphs_that_are_off_change_no_key():
    settings = plan(checked(composed()), DATA)["baseline"].depends_on["trainer"]
    assert settings == {"precision": "no", "channels_last": True, "compile": False}


def test_targets_share_everything_up_to_the_scores():
    one, other = keys("target_flops=0.4"), keys("target_flops=0.6")
    shared = {name for name in one if one[name] == other[name]}
    assert shared == {"baseline", "sparsify", "score"}


def test_rivals_share_the_baseline_and_only_that():
    one, other = keys("method=chip"), keys("method=hrank")
    assert {name for name in one if one[name] == other[name]} == {"baseline"}


def test_a_control_shares_the_scores_that_decide_its_widths():
    control, magnitude = keys("method=random"), keys("method=no_admm")
    assert control["widths"] == magnitude["score"]
    assert control["score"] != magnitude["score"]
    assert control["prune"] != magnitude["prune"]


def test_from_scratch_differs_in_the_last_stage_alone():
    scratch, fine = keys("method=scratch_e"), keys("method=no_admm")
    assert {name for name in fine if fine[name] != scratch[name]} == {"finetune"}
    assert keys("method=scratch_b")["finetune"] not in (scratch["finetune"], fine["finetune"])


def test_single_weights_need_no_scores():
    assert list(keys("method=weights")) == ["baseline", "sparsify", "prune", "finetune"]


@pytest.mark.parametrize(
    ("override", "first"),
    [
        ("seed=1", "baseline"),
        ("trainer.compile=true", "baseline"),
        ("trainer={compile: true, cuda_graphs: true}", "baseline"),
        ("lamb=2e-4", "sparsify"),
        ("regularizer=bn_scale", "sparsify"),
        ("criterion=fpgm", "score"),
        ("criterion.across=raw", "prune"),
        ("round_to=8", "prune"),
        ("finetune.epochs=7", "finetune"),
        ("retrain=scratch_b", "finetune"),
    ],
)
def test_a_setting_changes_the_keys_from_its_stage_on(override, first):
    before, after = keys(), keys(override)
    names = list(before)
    changed = [name for name in names if before[name] != after[name]]
    assert changed[0] == first
    trunk = [name for name in names if name != "score"]
    assert [n for n in changed if n != "score"] == trunk[
        trunk.index("prune" if first == "score" else first) :
    ]


@pytest.mark.parametrize("other", [{"image_size": 112, "workers": 2}, {"image_size": 64, "workers": 4}])
def test_streamed_images_of_another_size_or_another_crop_are_other_data(other):
    config = checked(composed("dataset=imagenette", "model=resnet50"))
    one, two = (
        plan(config, SimpleNamespace(fingerprint="listing:x", reading=reading))
        for reading in ({"image_size": 64, "workers": 2}, other)
    )
    assert all(one[name].key != two[name].key for name in one)


def test_where_decoded_images_are_kept_changes_no_key():
    data = SimpleNamespace(fingerprint="listing:x", reading={"image_size": 112, "workers": 2})
    one, two = (
        plan(checked(composed("dataset=imagenette", "model=resnet50", f"dataset.store_gb={most}")), data)
        for most in (0, 100)
    )
    assert {name: step.key for name, step in one.items()} == {name: step.key for name, step in two.items()}
