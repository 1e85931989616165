"""Records: what is written is read back, what is no record is refused, and what is said of the machine."""

import json
import os
import re

import msgspec
import pytest

from lpslim.base.errors import UserError
from lpslim.experiment import records
from lpslim.experiment.records import Record

KEY = "0123456789abcdef"
STAGES = {"baseline": "b" * 16, "sparsify": "c" * 16, "score": "d" * 16, "prune": "e" * 16, "finetune": KEY}
ACCURACY = {"last": 90.0, "val": 89.5, "paper": 91.0}
CONFIG = {**dict.fromkeys(sorted(records.SETTINGS)), "p": 5.0, "model": {"name": "vgg16"}}
REMOVED = object()
PATHS = ("../x", "/etc/x", "a//b", "a/../b", "", ".", "a/.b", "a\n", "a/", "x" * 201)  # no experiment's


def sample(**changes):
    """Return a valid record as JSON gives it, with some fields changed."""
    return {
        "schema": 2, "experiment": "table/row", "method": "Lp p=5, M=1", "kind": "ADMM",
        "seed": 0, "key": KEY, "stages": STAGES, "groups": STAGES, "versions": dict.fromkeys(STAGES, 1),
        "weights": {"baseline": "0" * 64}, "differs": {"p": [5.0, 2.0]},
        "config": CONFIG,
        "data": {"name": "digits", "source": "scikit-learn", "fingerprint": "f" * 64, "metric": "accuracy",
                 "train": 8, "val": 1, "test": 2},
        "cost": {"rule": records.RULE, "dense": {"macs": 100, "params": 10},
                 "pruned": {"macs": 40, "params": 5}, "flops_drop": 60.0, "params_drop": 50.0},
        "accuracy": {"baseline": ACCURACY, "prune": ACCURACY, "finetune": ACCURACY},
        "channels": {"features.0": [3, 4]},
        "convergence": [{"iteration": 1.0, "primal": 0.5}],
        "curves": {"baseline": {"train_loss": [0.5], "val_accuracy": [89.5], "test_accuracy": [90.0]}},
        "seconds": {"baseline": 1.5}, "environment": {"python": "3.11", "dirty": False, "commit": None},
        "diverged": None, **changes,
    }  # fmt: skip


def replaced(path, value):
    content = node = json.loads(json.dumps(sample()))
    *parents, last = path.split("/")
    for part in parents:
        node = node[part]
    node[last] = value
    if value is REMOVED:
        del node[last]
    return content


def refusal(tmp_path, text):
    path = tmp_path / "record.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}: not a record: ") as refused:
        records.read(path)
    return str(refused.value)


def test_what_is_read_is_what_was_written_also_of_a_run_that_diverged(tmp_path):
    record = msgspec.convert(sample(), Record)
    path = records.write(tmp_path, record)
    assert path == tmp_path / "records" / "table" / "row" / f"{KEY}.json"
    assert records.read(path) == record
    assert records.read_all(tmp_path) == [record]
    (tmp_path / "records" / "test.json").mkdir()
    (tmp_path / "records" / "._x.json").write_bytes(b"\0")  # as macOS leaves them
    assert records.read_all(tmp_path) == [record]
    assert record.epochs == {"baseline": 1}
    assert records.write(tmp_path, msgspec.structs.replace(record, seed=1)) == path
    assert records.read(path) == record  # never changed
    where = {"stage": "finetune", "epoch": 1, "step": 3, "loss": "nan"}
    early = sample(
        diverged={**where, "stage": "baseline"},
        cost={"rule": "r"},
        accuracy={},
        channels={},
        experiment="table/early",
    )
    late = sample(diverged=where, accuracy={"baseline": ACCURACY, "prune": ACCURACY}, experiment="table/late")
    for content in (early, late):
        record = msgspec.convert(content, Record)
        assert records.read(records.write(tmp_path, record)) == record


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("schema", 1, "1 - at `$.schema`"), ("schema", REMOVED, "missing required field `schema`"),
        ("extra", 1, "unknown field `extra`"), ("cost", REMOVED, "`cost`"),
        ("seed", "0", "at `$.seed`"), ("seed", True, "at `$.seed`"), ("seed", -1, "at `$.seed`"),
        ("seed", 2**70, "at `$.seed`"), ("key", "../../etc/passwd", "at `$.key`"),
        ("key", f"{KEY}\n", "at `$.key`"), ("key", "f" * 16, "stages.finetune"),
        ("stages/baseline", "", "`$.stages"), ("stages/brew", KEY, "`key` in `$.stages`"),
        ("groups/baseline", REMOVED, "groups"), ("versions/prune", 0, "`$.versions"),
        ("weights/prune", "x", "`$.weights"), ("data/train", 1.5, "`$.data.train`"),
        ("cost/flops_drop", REMOVED, "cost: needs"), ("cost/params_drop", 101.0, "`$.cost.params_drop`"),
        ("cost/dense/macs", -1, "`$.cost.dense.macs`"),
        ("accuracy/finetune", REMOVED, "accuracy: needs"),
        ("accuracy/finetune/val", REMOVED, "accuracy: must hold"), ("data/val", 0, "accuracy: must hold"),
        ("accuracy/finetune/best", 1.0, "`key` in `$.accuracy"),
        ("accuracy/finetune/last", 100.1, "`$.accuracy"), ("channels/features.0", [0, 4], "`$.channels"),
        ("channels/features.0", [1], "`$.channels"), ("seconds/baseline", -0.1, "`$.seconds"),
        ("diverged", {"epoch": 1}, "`$.diverged`"), ("environment/commit", ["a"], "`$.environment"),
        ("config", {}, "config.model.name"), ("config/model", "name", "config.model.name"),
        ("config/model/name", 5, "config.model.name"), ("config/ratio", REMOVED, "config: lacks settings"),
        *(("experiment", name, "at `$.experiment`") for name in PATHS),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named(tmp_path, path, value, said):
    assert said in refusal(tmp_path, json.dumps(replaced(path, value)))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_what_is_no_number_is_neither_read_nor_written(tmp_path, number):
    for path in ("accuracy/prune/last", "config/p"):
        assert refusal(tmp_path, json.dumps(replaced(path, [987])).replace("[987]", number))
    (tmp_path / "record.json").unlink()
    record = msgspec.convert(sample(config={**CONFIG, "p": float(number)}), Record)
    with pytest.raises(ValueError, match="JSON"):
        records.write(tmp_path, record)
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    "text",
    ["", "hello", '{"schema": 2, ', "[]", "1", "\ufeff{}".encode("utf-16"), b'{"experiment": "\xff"}',
     "[" * 100_000, '{"config": ' + '{"a":' * 50_000, b" " * 1_000_001], ids=range(10),
)  # fmt: skip
def test_a_text_that_is_no_record(tmp_path, text):
    assert refusal(tmp_path, text)


def test_neither_a_folder_nor_a_pipe_is_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    for path in (tmp_path, tmp_path / "pipe.json", tmp_path / "nothing.json"):
        with pytest.raises(UserError, match="not a record"):
            records.read(path)
