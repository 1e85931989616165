import pytest
from omegaconf import OmegaConf

from lpslim.cli import GROUPS, checked
from lpslim.training.schedule import scaled
from tests.composing import CONF, composed

EXPERIMENTS = sorted(
    str(p.relative_to(CONF / "experiment").with_suffix("")) for p in CONF.rglob("experiment/*/*.yaml")
)
CHOICES = [
    f"{group}={path.relative_to(CONF / group).with_suffix('')}"
    for group in GROUPS
    if group not in ("experiment", "debug")
    for path in sorted((CONF / group).rglob("[!_]*.yaml"))
]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes_and_knows_its_own_name(name):
    config = checked(composed(f"experiment={name}"))
    assert config.name == name
    header = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()
    assert header[0] == "# @package _global_"
    assert f"experiment={name}" in header[1]
    assert header[2].startswith("# Source: ")


@pytest.mark.parametrize("choice", [*CHOICES, "debug=tiny", "debug=dry"])
def test_every_choice_of_every_group_composes(choice):
    checked(composed(choice, *partner(choice)))


def partner(choice):
    """Return the model for texts, or the texts for a model, so that they fit."""
    group, _, name = choice.partition("=")
    if group == "dataset" and (name == "grammar" or "/" in name):
        return ["model=bert_tiny"]
    texts = group == "model" and "input: text" in (CONF / group / f"{name}.yaml").read_text()
    return ["dataset=grammar"] if texts else []


def test_the_papers_own_command_composes():
    config = checked(
        composed(
            "model=resnet50", "dataset=imagenet", "p=5", "M=1", "rho=1.5e-3", "ratio=0.95", "adjust=0.45"
        )
    )
    assert (config.model.name, config.dataset.name) == ("resnet50", "imagenet")
    assert (config.p, config.M, config.rho, config.lamb) == (5, 1, 1.5e-3, 1e-4)
    assert (config.ratio, config.adjust, config.model.floor) == (0.95, 0.45, 0.3)


def test_defaults_are_those_of_the_released_code():
    config = checked(composed("dataset=cifar10"))
    sparsify = config.regularizer.train
    assert (sparsify.epochs, sparsify.lr, sparsify.momentum) == (3, 0.01, 0.9)
    assert (sparsify.weight_decay, sparsify.batch_size) == (5e-4, 256)
    assert config.finetune.label_smoothing == 0.1
    assert config.finetune.warmup_epochs == 5


@pytest.mark.parametrize(("profile", "epochs"), [("paper", 350), ("short", 35), ("smoke", 1)])
def test_a_profile_scales_every_stage_by_one_factor(profile, epochs):
    config = checked(composed("dataset=cifar10", f"profile={profile}"))
    assert scaled(config.finetune, config.epoch_scale).epochs == epochs


def test_a_schedule_keeps_the_length_that_the_data_set_gives():
    cosine, step = (
        checked(composed("dataset=cifar10", f"schedule={s}")).finetune for s in ("cosine", "step")
    )
    assert cosine.epochs == step.epochs == 350
    assert (cosine.schedule, step.schedule) == ("cosine", "step")


def test_config_yaml_sets_only_keys_of_the_schema():
    assert not OmegaConf.missing_keys(composed())
