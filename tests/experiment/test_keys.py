"""Keys: which settings change which stages, groups over seeds, the names of methods."""

import json
from copy import deepcopy
from functools import cache, reduce
from types import SimpleNamespace

import pytest

from lpslim.base.errors import UserError
from lpslim.experiment.config import IGNORED_KEYS, Config, Dataset, Model
from lpslim.experiment.keys import method, plan, trainings
from lpslim.experiment.records import public
from lpslim.models import encoders
from lpslim.training.schedule import RuntimeConfig, TrainConfig
from tests.composing import configured

DATA = SimpleNamespace(fingerprint="f" * 64, reading={}, shape=(1, 8, 8))
BASE = ("dataset=digits", "model=vgg_small", "trainer.precision=fp32")


@cache
def composed(*words):
    return configured(*BASE, *words)


def planned(*words, data=DATA, **settings):
    """Return the plan of a command line, with ``settings`` changed: regularizer__form="norm"."""
    config = deepcopy(composed(*words))
    for key, value in settings.items():
        *groups, name = key.split("__")
        setattr(reduce(getattr, groups, config), name, value)
    return plan(config, data)


def keys(*words, **settings):
    return {name: step.key for name, step in planned(*words, **settings).items()}


def changed(one, other, field="key"):
    return {name for name in one if getattr(one[name], field) != getattr(other[name], field)}


def test_golden_keys():
    model, dataset = Model(family="vgg", name="vgg_small"), Dataset(name="digits", source="digits")
    config = Config(model=model, dataset=dataset, trainer=RuntimeConfig(precision="fp32"))
    assert {name: (step.key, step.group) for name, step in plan(config, DATA).items()} == {
        "baseline": ("dd2fcc8adaaf6a2a", "17fbdc193e0d3543"),
        "sparsify": ("68dc137cbad87255", "1ebc61e5274f803a"),
        "score": ("48daa7ed0e0e8412", "90ed9869a080c693"),
        "prune": ("8671585472a76b51", "e99cf8dd76e69d4f"),
        "finetune": ("8f50627928292537", "2d5d23481ea4a3fd"),
    }


def test_prune_reads_the_scores():
    assert list(planned("method=weights")) == ["baseline", "sparsify", "prune", "finetune"]
    stores = {name: step.folder.parent.name for name, step in planned("method=random").items()}
    scores = {"layer_budget": "score", "score": "score"}
    assert stores == {"baseline": "baseline", **scores, "prune": "prune", "finetune": "finetune"}


@pytest.mark.parametrize(
    ("settings", "first"),
    [
        ({"baseline__lr": 0.2}, "baseline"), ({"dataset__flip": True}, "baseline"),
        ({"trainer__precision": "bf16"}, "baseline"), ({"trainer__compile": True}, "baseline"),
        ({"model__name": "vgg16"}, "baseline"), ({"lamb": 2e-4}, "sparsify"), ({"rho": 1.0}, "sparsify"),
        ({"p": 2.0}, "sparsify"), ({"M": None}, "sparsify"), ({"regularizer__form": "norm"}, "sparsify"),
        ({"regularizer__name": "bn_l1"}, "sparsify"), ({"criterion__name": "fpgm"}, "score"),
        ({"criterion__weights": "W"}, "score"), ({"protected": ["features.0"]}, "score"),
        ({"coupled": True}, "score"), ({"coupled": True, "coupled_floor": 0.3}, "score"),
        ({"criterion__score_norm": "raw"}, "prune"), ({"adjust": 0.5}, "prune"), ({"ratio": 0.6}, "prune"),
        ({"model__floor": 0.3}, "prune"), ({"target_flops": 0.5}, "prune"), ({"target_params": 0.5}, "prune"),
        ({"round_to": 8}, "prune"), ({"finetune__epochs": 7}, "finetune"),
        ({"retrain": "scratch_b"}, "finetune"), ({"seed": 7}, "baseline"),
    ],
)  # fmt: skip
def test_a_setting_changes_the_stages_from_its_own_on_and_the_seed_no_group(settings, first):
    stages, other = list(planned()), planned(**settings)
    later = set(stages[stages.index(first) :])
    assert changed(planned(), other) == later
    assert changed(planned(), other, "group") == (set() if "seed" in settings else later)


def test_ignored_settings_change_no_key():
    for key in IGNORED_KEYS - {"dataset.source", "name"}:
        assert keys(**{key.replace(".", "__"): "something else"}) == keys(), key


def test_what_a_regulariser_its_penalty_or_the_units_make_no_use_of_is_in_no_key():
    for knob in ("p", "M", "rho", "lamb", "criterion__weights", "regularizer__form"):
        assert keys(regularizer__name="none", **{knob: 7.0}) == keys(regularizer__name="none")
    assert keys(ratio=0.6)["sparsify"] == keys(ratio=0.3)["sparsify"]
    assert keys(p=0, ratio=0.6)["sparsify"] != keys(p=0, ratio=0.3)["sparsify"]
    assert keys(p=0, M=2) == keys(p=0, M=1)
    assert keys(regularizer__name="bn_l1", rho=1) == keys(regularizer__name="bn_l1")
    assert not changed(planned(), planned(coupled_floor=0.3))
    assert changed(planned(coupled=True), planned(coupled=True, coupled_floor=0.3)) == {"prune", "finetune"}


def test_a_regulariser_that_chooses_is_keyed_by_the_budget_and_there_is_no_score():
    chosen = planned("method=lp_channels")
    assert list(chosen) == ["baseline", "sparsify", "prune", "finetune"]
    for setting in ({"target_flops": 0.3}, {"round_to": 8}, {"adjust": 0.1}, {"protected": ["features.0"]},
                    {"model__floor": 0.2}, {"finetune__lr": 0.3}, {"finetune__epochs": 9},
                    {"regularizer__options": {"ramp": 0.2}}, {"M": None}):  # fmt: skip
        assert "sparsify" in changed(chosen, planned("method=lp_channels", **setting)), setting
    for unused in ({"lamb": 1.0}, {"criterion__name": "fpgm"}, {"regularizer__train__lr": 1.0}):
        assert "sparsify" not in changed(chosen, planned("method=lp_channels", **unused)), unused
    with pytest.raises(UserError, match="granularity=weights: must be channels with regularizer=channels"):
        planned("method=lp_channels", granularity="weights")
    budgets = [planned("method=lp_channels", target_flops=0.3, ratio=ratio) for ratio in (0.5, 0.6)]
    assert not changed(*budgets)


def test_one_schedule_spans_the_stage_and_the_fine_tune():
    both = ("lp_channels", "no_admm")
    shared, alone = (trainings(composed(f"method={name}", "epoch_scale=2")) for name in both)
    first, last = shared["sparsify"], shared["finetune"]
    assert (first.epochs, last.epochs) == (6, 20)
    assert (first.before, first.after, last.before, last.after) == (0, 20, 6, 0)
    assert (first.lr, first.label_smoothing) == (last.lr, last.label_smoothing) == (0.01, 0.1)
    assert alone["finetune"].epochs == 26


@pytest.mark.parametrize(("words", "rewound"), [((), ("retrain=rewind",)),
                         (("method=lp_channels",), ("method=lp_channels_rewind",))])  # fmt: skip
def test_rewinding_shares_all_but_the_fine_tune_which_has_the_epochs_of_both(words, rewound):
    assert changed(planned(*words), planned(*rewound)) == {"finetune"}
    last = trainings(composed(*rewound))["finetune"]
    assert (type(last), last.epochs) == (TrainConfig, 16)


def test_other_data_or_another_reading_of_them_are_another_network():
    for change in ({"fingerprint": "e" * 64}, {"reading": {"workers": 2}}, {"shape": (1, 16, 16)}):
        other = planned(data=SimpleNamespace(**{**vars(DATA), **change}))
        assert changed(planned(), other) == set(other)


def test_methods_share_what_they_have_in_common():
    random, magnitude, scratch = keys("method=random"), keys("method=no_admm"), keys("method=scratch_e")
    assert random["layer_budget"] == magnitude["score"]
    assert random["prune"] != magnitude["prune"]
    assert {name for name in magnitude if magnitude[name] != scratch[name]} == {"finetune"}
    chip, hrank = keys("method=chip"), keys("method=hrank")
    assert {name for name in chip if chip[name] == hrank[name]} == {"baseline"}


def test_epoch_scale_lengthens_all_but_the_sparsify_stage():
    def epochs(*words):
        return {stage: train.epochs for stage, train in trainings(composed(*words)).items()}

    before, scaled = epochs(), epochs("epoch_scale=2")
    assert scaled == {name: count * (1 if name == "sparsify" else 2) for name, count in before.items()}
    scratch = ("retrain=scratch_e", "epoch_scale=2")
    assert epochs(*scratch)["finetune"] == 2 * before["baseline"]
    assert epochs(*scratch, "scratch.epochs=5")["finetune"] == 10


@pytest.mark.parametrize("scale", [1, 0.1])
def test_methods_without_a_sparsify_stage_fine_tune_for_its_epochs_more(scale):
    def epochs(*words):
        lengths = {s: t.epochs for s, t in trainings(composed(f"epoch_scale={scale}", *words)).items()}
        return lengths["finetune"] + lengths.get("sparsify", 0)

    with_admm = epochs()
    assert with_admm == round(10 * scale) + 6
    assert {epochs(f"method={name}") for name in ("no_admm", "random", "taylor", "slimming")} == {with_admm}
    assert epochs("method=no_admm", "equal_epochs=false") == with_admm - 6
    assert epochs("method=scratch_e") == round(30 * scale)  # the dense network's
    assert epochs("method=no_admm", "finetune.epochs=0") == 0
    one, other = (keys("method=no_admm", f"equal_epochs={value}") for value in ("true", "false"))
    assert {name for name in one if one[name] != other[name]} == {"finetune"}
    assert keys("equal_epochs=true") == keys("equal_epochs=false")


@pytest.mark.parametrize(
    ("words", "name", "kind"),
    [
        ((), "Lp p=5, M=1", "ADMM"),
        (("p=0",), "L0", "ADMM"),
        (("regularizer=bn_l1", "criterion=bn_scale"), "BN-L1, bn_scale (raw)", "rival"),
        (("regularizer=none",), "no ADMM", "control"),
        (("regularizer=none", "criterion=chip"), "no ADMM, chip (uniform)", "rival"),
        (("regularizer=none", "criterion=random"), "no ADMM, random (uniform)", "control"),
        (("regularizer=none", "retrain=scratch_b"), "no ADMM, scratch_b", "control"),
        (("granularity=weights",), "Lp p=5, M=1", "unstructured"),
        (("label=mine", "kind=rival"), "mine", "rival"),
    ],
)  # fmt: skip
def test_a_method_has_a_name_and_a_kind(words, name, kind):
    assert method(composed(*words)) == {"method": name, "kind": kind}


def test_the_place_of_an_encoders_folder_is_in_no_key_and_no_record(tmp_path):
    found = []
    for place in (tmp_path / "here" / "encoder", tmp_path / "there" / "encoder"):
        place.mkdir(parents=True)
        (place / "config.json").write_text(json.dumps(encoders.configuration("tiny")))
        config = configured("model=bert_tiny", "dataset=toy_text", f"model.name={place}")
        assert str(tmp_path) not in str(public(config))
        found.append({name: step.key for name, step in plan(config, DATA).items()})
    assert found[0] == found[1]


@pytest.mark.parametrize("key", ["penalty_options", "options"])
def test_options_that_a_plug_in_does_not_know_are_refused(key):
    with pytest.raises(UserError, match=rf"^regularizer\.{key}\.eps=1: no such option; there are none"):
        planned(**{f"regularizer__{key}": {"eps": 1}})
