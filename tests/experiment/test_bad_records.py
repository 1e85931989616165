"""Record files that are none, and the exact message; those that are there all read."""

import json
import os
from dataclasses import asdict, fields

import pytest

from lpslim.base.errors import UserError
from lpslim.experiment import records, schema
from tests.composing import ROOT
from tests.unit import synthetic

REMOVED = object()
FINETUNE = {"last": 1.0, "val": 1.0, "paper": 1.0}
# path of the value -> (wrong value, what the message says)
WRONG = [
    (("schema",), 2, "schema=2: Input should be 1"),
    (("schema",), REMOVED, "schema: missing"),
    (("extra",), 1, "extra: unknown"),
    (("cost",), REMOVED, "cost: missing"),
    (("seed",), "0", "seed='0': Input should be a valid integer"),
    (("seed",), True, "seed=True: Input should be a valid integer"),
    (("seed",), -1, "seed=-1: Input should be greater than or equal to 0"),
    (("seed",), 2**70, f"seed={2**70}: Input should be less than {2**63}"),
    (("key",), "../../etc/passwd", "key='../../etc/passwd': String should match pattern '^[0-9a-f]{16}$'"),
    (("key",), "0123456789ABCDEF", "key='0123456789ABCDEF': String should match pattern '^[0-9a-f]{16}$'"),
    (("key",), "0" * 16 + "\n", r"key='0000000000000000\n': String should match pattern '^[0-9a-f]{16}$'"),
    (("stages", "baseline"), "", "stages.baseline='': String should match pattern '^[0-9a-f]{16}$'"),
    (("stages", "baseline"), REMOVED, "stages.baseline: missing"),
    (("stages", "sparsify"), REMOVED, "stages.sparsify: missing, but there is a convergence"),
    (("weights",), {"prune": "x"}, "weights.prune='x': String should match pattern '^[0-9a-f]{64}$'"),
    (("versions",), {"prune": 0}, "versions.prune=0: Input should be greater than or equal to 1"),
    (("versions",), {"brew": 1}, "versions.brew.[key]='brew': Input should be 'baseline', 'sparsify', "
     "'widths', 'score', 'prune' or 'finetune'"),
    (("differs",), {"p": [1]}, "differs.p=[1]: List should have at least 2 items after validation, not 1"),
    (("data", "fingerprint"), "abc", "data.fingerprint='abc': String should match pattern "
     "'^(listing:)?[0-9a-f]{64}$'"),
    (("data", "metric"), "bleu", "data.metric='bleu': Input should be 'accuracy', 'f1', 'matthews' or "
     "'spearman'"),
    (("data", "train"), 1.5, "data.train=1.5: Input should be a valid integer"),
    (("cost",), [], "cost=[]: Input should be an object"),
    (("cost", "flops_drop"), REMOVED, "cost.flops_drop: missing"),
    (("cost", "flops_drop"), "60", "cost.flops_drop='60': Input should be a valid number"),
    (("cost", "params_drop"), 101, "cost.params_drop=101: Input should be less than or equal to 100"),
    (("cost", "dense", "macs"), -1, "cost.dense.macs=-1: Input should be greater than or equal to 0"),
    (("accuracy", "finetune"), REMOVED, "accuracy.finetune: missing"),
    (("accuracy", "finetune", "val"), REMOVED, "accuracy.finetune.val: missing"),
    (("accuracy", "finetune", "best"), 1.0, "accuracy.finetune.best: unknown"),
    (("accuracy", "finetune", "last"), 100.1, "accuracy.finetune.last=100.1: Input should be less than or "
     "equal to 100"),
    (("accuracy", "prune", "last"), None, "accuracy.prune.last=None: Input should be a valid number"),
    (("accuracy", "polish"), FINETUNE, "accuracy.polish: unknown"),
    (("channels", "features.0"), [0, 64], "channels.features.0.0=0: Input should be greater than or equal "
     "to 1"),
    (("channels", "features.0"), [65, 64], "channels.features.0=[65, 64]: keeps more than there "
     "are"),
    (("channels", "features.0"), [1], "channels.features.0.1: missing"),
    (("convergence", 0, "primal"), -1.0, "convergence.0.primal=-1.0: Input should be greater than or equal "
     "to 0"),
    (("convergence", 0, "capped"), REMOVED, "convergence.0.capped: missing"),
    (("convergence", 0, "sparsity"), 1.5, "convergence.0.sparsity=1.5: Input should be less than or equal "
     "to 1"),
    (("curves", "baseline"), [], "curves.baseline=[]: Input should be an object"),
    (("curves", "baseline", "train_loss"), ["1"], "curves.baseline.train_loss.0='1': Input should be a valid "
     "number"),
    (("seconds", "baseline"), -0.1, "seconds.baseline=-0.1: Input should be greater than or equal to 0"),
    (("diverged",), {"epoch": 1}, "diverged: needs stage, epoch and step"),
    (("config",), {}, "config.M: missing"),
    (("config", "model", "name"), REMOVED, "config.model.name: missing"),
    (("config", "model", "nane"), "x", "config.model.nane: unknown"),
    (("config", "p"), "5", "config.p='5': Input should be a valid number"),
    (("config", "p"), 10**400, None),
    (("environment", "commit"), ["a"], "environment.commit=['a']: must be a text, a number, "
     "true, false or null"),
    (("differs", "p"), [1, {"a": 1}], "differs.p.1={'a': 1}: must be a text, a number, true, "
     "false or null"),
    (("config", "protected"), "layer1", "config.protected='layer1': Input should be a valid array"),
]  # fmt: skip


def changed(path, value):
    content = asdict(synthetic.record("own/row"))
    node = content
    for part in path[:-1]:
        node = node[part]
    if value is REMOVED:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return json.dumps(content)


def refusal(tmp_path, text):
    path = tmp_path / "record.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as refused:
        records.read(path)
    return str(refused.value).removeprefix(f"{path}: not a record of schema 1: ")


@pytest.mark.parametrize(("path", "value", "message"), WRONG, ids=lambda part: str(part)[:30])
def test_a_wrong_value_is_named(path, value, message, tmp_path):
    found = refusal(tmp_path, changed(path, value))
    assert found == message if message else found.startswith(f"{'.'.join(path)}="), found


@pytest.mark.parametrize(
    ("field", "word"), [("retrain", "again"), ("structure", "rows"), ("selection", "best")]
)
def test_a_setting_that_a_table_would_not_know(field, word, tmp_path):
    message = refusal(tmp_path, changed(("config", field), word))
    assert f"{field}={word} is not one of " in message


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "a//b", "a/../b", "", ".", "a/.b", "a\n", "a/", "x" * 201]
)
def test_an_experiment_is_a_path_that_stays_below(name, tmp_path):
    assert refusal(tmp_path, changed(("experiment",), name)).endswith(
        "must be parts of letters, digits, '.', '_' and '-' between slashes"
    )


TEXTS = {
    "nothing": ("", "Invalid JSON: EOF while parsing a value at line 1 column 0"),
    "no JSON": ("hello", "Invalid JSON: expected value at line 1 column 1"),
    "cut short": ('{"schema": 1, ', "Invalid JSON: EOF while parsing a value at line 1 column 14"),
    "a list": ("[]", "[]: Input should be an object"),
    "a number": ("1", "1: Input should be an object"),
    "another encoding": ("\ufeff{}".encode("utf-16"), "Invalid JSON: expected value at line 1 column 1"),
    "half a character": (b'{"experiment": "\xff"}', "Invalid JSON: invalid unicode code point"),
    "deep": ("[" * 100_000, "Invalid JSON: recursion limit exceeded"),
    "deep below": ('{"config": ' + '{"a":' * 50_000, "Invalid JSON: recursion limit exceeded"),
    "large": (b" " * 1_000_001, "larger than 1000000 bytes"),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_a_text_that_is_no_record(kind, tmp_path):
    text, message = TEXTS[kind]
    assert refusal(tmp_path, text).startswith(message)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("place", ["accuracy", "environment", "differs", "config", "curves"])
def test_what_is_no_number_is_refused_everywhere(number, place, tmp_path):
    places = {
        "accuracy": ("accuracy", "prune", "last"),
        "environment": ("environment", "commit"),
        "differs": ("differs", "p"),
        "config": ("config", "M"),
        "curves": ("curves", "baseline", "train_loss"),
    }
    value = [987654321, 987654321] if place in ("differs", "curves") else 987654321
    text = changed(places[place], value).replace("987654321", number)
    assert number in text
    assert "finite number" in refusal(tmp_path, text)


def test_a_key_that_is_there_twice_is_refused(tmp_path):
    text = changed(("seed",), 0).replace('"seed": 0', '"seed": 1, "seed": 0', 1)
    assert refusal(tmp_path, text) == "'seed' is there twice"


def test_neither_a_folder_nor_a_pipe_is_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "folder.json").mkdir()
    for name in ("pipe", "folder", "nothing"):
        with pytest.raises(UserError, match=r"not a record of schema 1: no such file$"):
            records.read(tmp_path / f"{name}.json")


def test_the_fields_of_a_record_are_those_of_its_shape():
    named = {each.alias or name for name, each in schema.Shape.model_fields.items()}
    assert named == {each.name for each in fields(records.Record)}


def test_every_committed_record_reads():
    found = records.read_all(ROOT / "results")
    assert len(found) >= 23
    assert all(schema.is_name(each.experiment) for each in found)


def test_what_is_read_is_what_was_written(tmp_path):
    made = synthetic.record("own/row")
    assert records.read(records.write(tmp_path, made)) == made


def test_a_record_of_a_run_that_diverged_has_less(tmp_path):
    where = {"stage": "finetune", "epoch": 1, "step": 3, "loss": "nan"}
    accuracy = {"baseline": FINETUNE, "prune": {"last": 1.0}}
    early = synthetic.record("own/early", diverged=where, cost={"rule": "r"}, accuracy={}, stages={},
                             channels={}, convergence=[])  # fmt: skip
    late = synthetic.record("own/late", diverged=where, accuracy=accuracy)
    for made in (early, late):
        assert records.read(records.write(tmp_path, made)) == made


def test_the_first_records_lack_what_came_later(tmp_path):
    content = asdict(synthetic.record("own/row"))
    for name in ("versions", "weights", "diverged"):
        del content[name]
    del content["config"]["round_to"], content["config"]["criterion"]["widths"]
    (tmp_path / "old.json").write_text(json.dumps(content))
    assert records.read(tmp_path / "old.json").weights == {}
