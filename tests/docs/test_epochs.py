"""What sharing stages saves, as the protocol page says it, is what the plans of the tables' rows say."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from lpslim.cli import checked
from lpslim.plan import Step, plan
from tests.composing import CONF, ROOT, composed

PAGE = (ROOT / "docs" / "protocol.md").read_text()


def planned(table: str, *overrides: str) -> list[Step]:
    steps: list[Step] = []
    for path in sorted((CONF / "experiment" / table).glob("[!_]*.yaml")):
        config = checked(composed(f"experiment={table}/{path.stem}", *overrides))
        data = SimpleNamespace(fingerprint=config.dataset.name, reading={})
        for seed in (0, 1, 2):
            steps += plan(replace(config, seed=seed), data).values()
    return steps


@pytest.mark.parametrize(
    ("table", "begins"),
    [
        ("vgg16_cifar10", "VGG-16 on CIFAR-10, 7 rows"),
        ("resnet_cifar10", "ResNet-56 and ResNet-110 on CIFAR-10, 15 rows"),
        ("resnet50_imagenet", "ResNet-50 on ImageNet, 5 rows"),
        ("bert_glue", "BERT on GLUE, 8 rows, each of a task of its own"),
    ],
)
def test_epochs_with_and_without_shared_stages(table, begins):
    steps = planned(
        table, *(["model=bert_tiny"] if table == "bert_glue" else [])
    )  # its hub may be out of reach
    once = sum({step.key: step.epochs for step in steps}.values())
    assert f"| {begins} | {once:,} | {sum(step.epochs for step in steps):,} |" in PAGE
