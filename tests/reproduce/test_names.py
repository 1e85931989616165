"""Names: the method, and the settings in which configurations of equal methods differ."""

import pytest

from reproduce.aggregate import grouped
from reproduce.names import named, plain, setting, shared
from tests.reproduce import synthetic


def names(*changes):
    records = [synthetic.record(f"row{i}", **each) for i, each in enumerate(changes)]
    return [name for name, _ in named(grouped(records))]


def test_only_equal_methods_are_told_apart_and_only_by_what_changes_a_result():
    same = {"ratio": 0.5, "dataset.workers": 9}
    assert names(same, {"ratio": 0.7}, synthetic.NO_CAP | {"ratio": 0.9}) == [
        "Lp p=5, M=1, ratio=0.5",
        "Lp p=5, M=1, ratio=0.7",
        "Lp p=5, no cap",
    ]


def test_arithmetic_tells_apart_by_its_precision_and_a_younger_setting_by_nothing():
    old, new = synthetic.record(), synthetic.record(**{"trainer.precision": "fp32", "trainer.compile": True})
    del old.config["coupled"], old.config["regularizer"]["one_schedule"]
    assert [name for name, _ in named(grouped([old, new]))] == [
        "Lp p=5, M=1, trainer.precision=auto", "Lp p=5, M=1, trainer.precision=fp32",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data": synthetic.JPEG}, "data=image folder cifar10_jpeg"),
        ({"rule": "on fingers"}, "rule=on fingers"),
        ({"versions": {"prune": 9}}, "code=[1,1,1,9,1]"),
        ({"groups": synthetic.record().groups | {"finetune": "e" * 16}}, "key=eeeeeeee"),  # another plug-in
    ],
)
def test_equal_settings_are_told_apart_by_data_rule_code_or_key(changes, told):
    first, second = names({}, changes)
    assert told in first + second
    assert first.removesuffix(" †") != second.removesuffix(" †")


def test_kinds_have_their_order_and_what_is_outdated_a_mark():
    kinds = ("unstructured", "home-made", "control", "rival", "ADMM")
    changes = [{"method": kind, "kind": kind, "p": 1.0 + i} for i, kind in enumerate(kinds)]
    changes[0]["versions"] = {"prune": 9}
    assert names(*changes) == ["ADMM", "rival", "control", "unstructured †", "home-made"]


def test_settings_are_as_typed_names_have_a_common_part_and_texts_are_plain():
    values = [setting("key", value).removeprefix("key=") for value in (None, True, 5.0, 1.5e-3, "x", 3)]
    assert values == ["null", "true", "5", "0.0015", "x", "3"]
    assert shared(["Lp p=5, M=1, ratio=0.5", "Lp p=5, M=1, ratio=0.7"]) == "Lp p=5, M=1"
    assert shared(["no ADMM", "random"]) == "no ADMM; random"
    assert plain("a\nb\r\n\tc\x1b[2J\u202e d") == "a b c [2J d"


def test_published_rows_have_their_own_names_unless_more_than_their_length_was_changed():
    short = {"epoch_scale": 0.1, "differs": {"epoch_scale": [1.0, 0.1]}}
    rows = [synthetic.record("vgg16_cifar10/flops60_cos350", target_flops=0.606),
            synthetic.record("vgg16_cifar10/flops82_step300", target_flops=0.82, **short)]  # fmt: skip
    own = ["Lp p=5, M=1, flops60_cos350", "Lp p=5, M=1, flops82_step300, 0.1 of the epochs"]
    assert [name for name, _ in named(grouped(rows))] == own
    rows.append(synthetic.record("vgg16_cifar10/flops66_cos350", rho=2.0, differs={"rho": [1.5e-3, 2.0]}))
    assert all("rho=" in name for name, _ in named(grouped(rows)))
