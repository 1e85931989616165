"""Every file below conf/ composes, passes the checks and says what its name says."""

import pytest
from omegaconf import OmegaConf

from lpslim import cli
from lpslim.base.errors import UserError
from lpslim.experiment.config import IGNORED_KEYS, METHOD_KINDS, Config, declared, flat
from lpslim.models import family as families
from lpslim.pruning import selection
from lpslim.sparsity import admm
from lpslim.training.schedule import scaled
from tests.composing import CONF, configured

GROUPS = ("model", "dataset", "regularizer", "criterion", "method", "schedule", "trainer", "profile", "debug")


def names(group):
    files = (CONF / group).rglob("[!_]*.yaml")
    return sorted(str(file.relative_to(CONF / group).with_suffix("")) for file in files)


def partner(choice):
    """Return the model for texts, or the texts for a model, so that they fit."""
    group, _, name = choice.partition("=")
    if group == "dataset" and (name == "toy_text" or "/" in name):
        return ["model=bert_tiny"]
    texts = group == "model" and "input: text" in (CONF / group / f"{name}.yaml").read_text()
    return ["dataset=toy_text"] if texts else []


@pytest.mark.parametrize("name", names("experiment"))
def test_every_experiment_composes_knows_its_own_name_and_starts_from_its_weights(name):
    config, table = configured(f"experiment={name}"), name.split("/")[0]
    assert config.name == name
    stated = {"minilm_glue": "bf16", "cifar10_resnet20": "bf16"}.get(table, "auto")
    stated = "fp32" if name.startswith("minilm_glue/cola") else stated
    assert config.trainer.precision == stated  # as measured
    header = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()
    assert header[0] == "# @package _global_"
    assert f"experiment={name}" in header[1]
    assert header[2].startswith("# Source: ")
    if table in ("resnet_cifar10", "compare", "cifar10_resnet20", "resnet50_imagenet"):
        assert (config.model.weights, config.baseline.epochs, config.dataset.val_fraction) == ("public", 0, 0)
        assert families.published(config.model.family, config.model.name, "public")
        assert not config.retrain.startswith("scratch") or config.scratch.epochs == 200
    elif table == "vgg16_cifar10":
        assert (config.model.weights, config.baseline.epochs) == (None, 200)


@pytest.mark.parametrize("choice", [f"{group}={name}" for group in GROUPS for name in names(group)])
def test_every_choice_of_every_group_composes(choice):
    config = configured(choice, *partner(choice))
    assert config.seed == 0
    if choice.startswith("method="):  # only the ADMM has its label from the penalty
        assert config.kind in METHOD_KINDS
        assert (config.label == "") == (config.kind == "ADMM")
        assert (config.regularizer.name == "admm") == (config.kind in ("ADMM", "unstructured"))


@pytest.mark.parametrize(("typed", "place"), [("~/a b", "/home/me/a b"), ("~", "/home/me"), ("x/~", "x/~")])
def test_a_tilde_is_the_users_home_wherever_it_is_written(typed, place, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "debug").mkdir()
    own = OmegaConf.create()
    for key in cli.PATH_KEYS:
        OmegaConf.update(own, key, typed)
    (tmp_path / "debug" / "mine.yaml").write_text(f"# @package _global_\n{OmegaConf.to_yaml(own)}")
    written = [f"{key}='{typed}'" for key in cli.PATH_KEYS]
    for words in (written, ["debug=mine", f"hydra.searchpath=['file://{tmp_path}']"]):
        found = {name: value for name, value, _ in declared(configured(*words))}
        assert {key: found[key] for key in cli.PATH_KEYS} == dict.fromkeys(cli.PATH_KEYS, place)


def test_what_a_method_sets_cannot_be_given_beside_it():
    words = ["regularizer=lp", "regularizer.name=admm", "regularizer.penalty=lp", "criterion=fpgm",
             "criterion.name=magnitude", "retrain=scratch_e", "criterion.score_norm=raw",
             "granularity=weights"]  # fmt: skip
    with pytest.raises(UserError) as refused:
        configured("method=chip", *words)
    said = "is set by method=chip, so must not be given"
    assert str(refused.value).splitlines() == [f"{word}: {said}" for word in words]
    assert configured("method=chip", "regularizer.train.lr=0.1", "criterion.weights=W").label == "CHIP"


def test_the_papers_own_command_composes_and_defaults_are_those_of_the_released_code():
    words = ["model=resnet50", "dataset=imagenet", "p=5", "M=1", "rho=1.5e-3", "ratio=0.95", "adjust=0.45"]
    config = configured(*words, "model.weights=public", "baseline.epochs=0")
    assert (config.model.name, config.dataset.name) == ("resnet50", "imagenet")
    assert (config.p, config.M, config.rho, config.lamb) == (5, 1, 1.5e-3, 1e-4)
    assert (config.ratio, config.adjust, config.model.floor) == (0.95, 0.45, 0.3)
    config = configured("dataset=cifar10")
    sparsify = config.regularizer.train
    assert (sparsify.epochs, sparsify.lr, sparsify.momentum) == (3, 0.01, 0.9)
    assert (sparsify.weight_decay, sparsify.batch_size) == (5e-4, 256)
    assert (config.finetune.label_smoothing, config.finetune.warmup_epochs) == (0.1, 5)


@pytest.mark.parametrize(
    ("profile", "lengths"), [("paper", (200, 3, 350)), ("short", (20, 3, 35)), ("smoke", (1, 1, 1))]
)
def test_a_profile_scales_baseline_and_fine_tune_and_smoke_shortens_the_regulariser(profile, lengths):
    config = configured("dataset=cifar10", f"profile={profile}")
    parts = (config.baseline, config.finetune)
    baseline, finetune = (scaled(part, config.epoch_scale).epochs for part in parts)
    assert (baseline, config.regularizer.train.epochs, finetune) == lengths


def test_a_schedule_keeps_the_length_that_the_data_set_gives():
    cosine, step = (configured("dataset=cifar10", f"schedule={name}").finetune for name in ("cosine", "step"))
    assert cosine.epochs == step.epochs == 350
    assert (cosine.schedule, step.schedule) == ("cosine", "step")


def test_names_that_the_schema_repeats_are_those_of_their_rooms():
    rules = {key: metadata["rule"].allowed for key, _, metadata in declared(Config()) if metadata.get("rule")}
    assert rules["criterion.score_norm"] == f"one of {', '.join(selection.SCORE_NORMS)}"
    assert rules["regularizer.form"] == f"one of {', '.join(admm.FORMS)}"


def test_ignored_keys_are_declared_at_their_fields_and_nowhere_else():
    known = {key for key, _ in flat(OmegaConf.to_container(OmegaConf.structured(Config)))}
    assert {key for key, _, _ in declared(Config())} == known
    assert known > IGNORED_KEYS
    assert {"name", "label", "kind", "protocol", "results_dir", "work_dir", "dry_run", "dataset.root",
            "dataset.source", "dataset.download", "dataset.workers", "dataset.cache_gb", "trainer.device",
            "trainer.threads", "trainer.checkpoint_minutes", "trainer.trackers", "trainer.cuda_graphs",
            "model.weights_dir"} == IGNORED_KEYS  # fmt: skip
