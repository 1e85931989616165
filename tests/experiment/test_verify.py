"""Verify: a sound store passes, and every single thing that it checks can fail."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import synthetic

from lpslim.base import files
from lpslim.base.errors import UserError
from lpslim.base.hashing import stage_key
from lpslim.experiment import records, verify

NAME = "vgg16_cifar10/flops60_cos350"
CURVES = {
    "baseline": {"train_loss": [2.0, 1.0, 0.5], "val_accuracy": [60.0, 90.0, 90.0],
                 "test_accuracy": [61.0, 91.0, 92.3457]},
    "sparsify": {"train_loss": [0.5], "val_accuracy": [88.0], "test_accuracy": [89.0]},
    "finetune": {"train_loss": [0.4, 0.3], "val_accuracy": [85.0, 84.0], "test_accuracy": [86.0, 85.0]},
}  # fmt: skip
ACCURACY = {
    "baseline": {"last": 92.345678, "val": 91.0, "paper": 92.345678},  # the first best on validation
    "sparsify": {"last": 89.0, "val": 89.0, "paper": 89.0},
    "prune": {"last": 20.0},
    "finetune": {"last": 85.0, "val": 86.0, "paper": 86.0},
}
COST = {
    "rule": "a rule",
    "dense": {"macs": 1000, "params": 100},
    "pruned": {"macs": 394, "params": 18},
    "flops_drop": 60.6,
    "params_drop": 82.0,
}


def seal(folder: Path) -> None:
    """Write the manifest of a stage folder anew, as a run does."""
    content = json.loads((folder / "stage.json").read_text())
    store.seal(folder, {key: content[key] for key in content if key not in ("files", "digest")})


def sound(base: Path, **changes) -> records.Record:
    """Write stage folders and the record of one run below ``base``; ``changes`` are the record's."""
    keys: dict[str, str] = {}
    weights: dict[str, str] = {}
    parent = None
    for stage in ("baseline", "sparsify", "score", "prune", "finetune"):
        depends_on = {"seed": 0, "of": stage}
        keys[stage] = stage_key(stage, 1, depends_on, parent)
        parent = parent if stage == "score" else keys[stage]
        folder = base / "outputs/stages" / stage / keys[stage]
        store.write_text(folder / "weights.safetensors", f"weights of {stage}")
        store.write_text(folder / "Z/weights.safetensors", "Z")
        info = {"accuracy": ACCURACY[stage]} if stage in ACCURACY else {}
        store.seal(folder, {**info, "depends_on": depends_on})
        weights[stage] = store.file_hash(folder / "weights.safetensors")
    content = {
        "stages": keys, "key": keys["finetune"], "weights": weights, "accuracy": ACCURACY,
        "curves": CURVES, "cost": COST, **changes,
    }  # fmt: skip
    record = synthetic.record(NAME, **content)
    synthetic.write(base / "results", record)
    return record


def problems(base: Path) -> list[str]:
    return verify.verify(base / "results", base / "outputs").problems


def the_record(base: Path) -> Path:
    (path,) = (base / "results/records").rglob("*.json")
    return path


def the_stage(base: Path, stage: str) -> Path:
    (path,) = (base / "outputs/stages" / stage).iterdir()
    return path


def edit(path: Path, *keys: str, to: object) -> None:
    """Set one value deep inside a JSON file."""
    content = json.loads(path.read_text())
    node = content
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = to
    path.write_text(json.dumps(content))


def test_a_sound_store_has_no_problem(tmp_path, capsys):
    sound(tmp_path)
    arguments = ["verify", "--results", str(tmp_path / "results"), "--work-dir", str(tmp_path / "outputs")]
    assert verify.main(arguments) == 0
    assert capsys.readouterr().out == "1 records, 5 stages re-hashed, 0 absent, 0 problems\n"


ANY = ""  # whoever finds it first
CHANGES = [
    (("key",), "0123456789abcdef", "the file's name is not its key, 0123456789abcdef"),
    (("experiment",), "adhoc", "does not lie in the folder of its experiment, adhoc"),
    (("stages", "finetune"), "0123456789abcdef", "but its last stage has 0123456789abcdef"),
    (("config", "name"), "adhoc", f"its experiment is {NAME}, but its configuration is called adhoc"),
    (("seed",), 7, "its seed is 7, but its configuration has 0"),
    (("accuracy", "finetune", "last"), 85.01, "accuracy.finetune.last=85.01: its curve says 85.0"),
    (("accuracy", "finetune", "paper"), 85.0, "accuracy.finetune.paper=85.0: its curve says 86.0"),
    (("accuracy", "baseline", "val"), 92.3457, "accuracy.baseline.val=92.3457: its curve says 91.0"),
    (("accuracy", "prune", "last"), 100.5, ANY),
    (("accuracy", "prune", "last"), -1, "accuracy.prune.last=-1: is not between 0 and 100"),
    (("curves", "baseline", "test_accuracy"), [61.0, 91.0, 92.5], "92.345678: its curve says 92.5"),
    (("curves", "sparsify"), {"train_loss": [], "val_accuracy": [], "test_accuracy": []}, None),
    (("curves", "sparsify"), {"train_loss": []}, ANY),
    (("cost", "flops_drop"), 60.7, "cost.flops_drop=60.7: 394 of 1000 macs is a drop of 60.6"),
    (("cost", "params_drop"), 82.1, "cost.params_drop=82.1: 18 of 100 params is a drop of 82.0"),
    (("cost", "dense", "macs"), 0, "cannot be checked (ZeroDivisionError: division by zero)"),
    (("channels", "features.0"), [65, 64], ANY),
    (("weights", "baseline"), "0" * 64, "weights.safetensors is not the network of which the record has"),
    (("versions",), {"prune": 2}, "what the stage depends on has the key"),
]


@pytest.mark.parametrize(("keys", "to", "expected"), CHANGES)
def test_one_number_that_was_changed_is_found(tmp_path, keys, to, expected):
    sound(tmp_path)
    edit(the_record(tmp_path), *keys, to=to)
    found = problems(tmp_path)
    if expected is None:
        assert found == []
    else:
        assert any(expected in each for each in found), found
        assert all(each.startswith(str(the_record(tmp_path))) for each in found)


def test_an_accuracy_that_is_missing_is_found(tmp_path):
    sound(tmp_path, accuracy={k: v for k, v in ACCURACY.items() if k != "sparsify"})
    assert f"{the_record(tmp_path)}: accuracy.sparsify: is missing" in problems(tmp_path)


def test_the_accuracies_of_a_network_that_is_not_trained_are_one(tmp_path):
    curves = {k: v for k, v in CURVES.items() if k != "sparsify"}
    sound(tmp_path, curves=curves)
    assert problems(tmp_path) == []
    edit(the_record(tmp_path), "accuracy", "sparsify", "paper", to=90.0)
    assert any("accuracy.sparsify.paper=90.0: its curve says 89.0" in each for each in problems(tmp_path))


def test_correlations_may_be_negative_and_tied_validation_scores_may_be_rounded(tmp_path):
    curves = {**CURVES, "baseline": {**CURVES["baseline"], "test_accuracy": [61.0, -9.0, 92.3457]}}
    baseline = {"last": 92.345678, "val": 92.345678, "paper": 92.345678}
    changes = {"curves": curves, "accuracy": {**ACCURACY, "baseline": baseline}}
    sound(tmp_path, data={**synthetic.ORIGINAL, "metric": "matthews"}, **changes)
    assert not [each for each in problems(tmp_path) if "curve" in each]
    edit(the_record(tmp_path), "accuracy", "prune", "last", to=-100.1)
    assert any("100" in each and "accuracy.prune.last" in each for each in problems(tmp_path))


def test_a_moved_record_is_found(tmp_path):
    sound(tmp_path)
    path = the_record(tmp_path)
    moved = path.parent.parent / "flops66_cos350" / "copy.json"
    moved.parent.mkdir()
    path.rename(moved)
    key = path.stem
    assert problems(tmp_path) == [
        f"{moved}: the file's name is not its key, {key}",
        f"{moved}: does not lie in the folder of its experiment, {NAME}",
    ]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b"null"])
def test_a_broken_record_does_not_stop_the_rest(tmp_path, content):
    sound(tmp_path)
    edit(the_record(tmp_path), "cost", "flops_drop", to=1.0)
    broken = tmp_path / "results/records/adhoc/0.json"
    broken.parent.mkdir()
    broken.write_bytes(content)
    first, second = problems(tmp_path)
    assert first.startswith(f"{broken}: not a")
    assert "cost.flops_drop=1.0" in second


def test_a_flipped_bit_of_the_weights_is_found_twice(tmp_path):
    sound(tmp_path)
    file = the_stage(tmp_path, "baseline") / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[3] ^= 1
    file.write_bytes(content)
    own, recorded = problems(tmp_path)
    assert own == f"{file.parent}: weights.safetensors: is not the file that was written"
    assert recorded.endswith("weights.safetensors is not the network of which the record has the hash")


@pytest.mark.parametrize("name", ["weights.safetensors", "Z/weights.safetensors"])
def test_truncated_and_missing_files_are_found(tmp_path, name):
    sound(tmp_path)
    file = the_stage(tmp_path, "sparsify") / name
    file.write_bytes(file.read_bytes()[:-1])
    assert f"{file.parents[name.count('/')]}: {name}: is not the file that was written" in problems(tmp_path)
    file.unlink()
    assert any(f"{name}: is missing" in each for each in problems(tmp_path))


def test_a_changed_or_truncated_stage_json_is_found(tmp_path):
    sound(tmp_path)
    file = the_stage(tmp_path, "prune") / "stage.json"
    text = file.read_text()
    edit(file, "accuracy", "last", to=21.0)
    damaged, unlike = problems(tmp_path)
    assert damaged == f"{file.parent}: stage.json: is not what was written"
    assert unlike.endswith("the record's accuracy is {'last': 20.0}, the stage's {'last': 21.0}")
    file.write_text(text[:-20])
    (damaged,) = problems(tmp_path)
    assert damaged.startswith(f"{file.parent}: stage.json: cannot be read")
    file.unlink()
    (damaged,) = problems(tmp_path)
    assert damaged.startswith(f"{file.parent}: stage.json: cannot be read")


def test_a_stage_under_the_key_of_another_is_found(tmp_path):
    sound(tmp_path)
    folder = the_stage(tmp_path, "score")
    edit(folder / "stage.json", "depends_on", "seed", to=1)
    seal(folder)  # its manifest is in order
    (found,) = problems(tmp_path)
    expected = stage_key("score", 1, {"seed": 1, "of": "score"}, the_stage(tmp_path, "sparsify").name)
    assert found.endswith(f"score {folder.name}: what the stage depends on has the key {expected}")


def test_stages_that_are_gone_or_older_than_hashes_are_counted(tmp_path):
    sound(tmp_path)
    for file in (folder := the_stage(tmp_path, "finetune")).rglob("*"):
        if file.is_file():
            file.unlink()
    (folder / "Z").rmdir()
    folder.rmdir()
    content = json.loads((older := the_stage(tmp_path, "score") / "stage.json").read_text())
    older.write_text(json.dumps({"depends_on": content["depends_on"]}))
    found = verify.verify(tmp_path / "results", tmp_path / "outputs")
    assert found.text() == "1 records, 3 stages re-hashed, 1 older than hashes, 1 absent, 0 problems"


def test_stages_that_records_share_count_once(tmp_path):
    record = sound(tmp_path)
    twin = synthetic.record("adhoc", **{
        name: getattr(record, name) for name in ("key", "stages", "accuracy", "curves", "cost", "weights")
    })  # fmt: skip
    synthetic.write(tmp_path / "results", twin)
    found = verify.verify(tmp_path / "results", tmp_path / "outputs")
    assert found.text() == "2 records, 5 stages re-hashed, 0 absent, 0 problems"


DIVERGED = {"stage": "finetune", "epoch": 3, "step": 7, "loss": "nan"}


def test_a_diverged_run_has_what_came_before(tmp_path):
    before = {k: v for k, v in ACCURACY.items() if k != "finetune"}
    sound(tmp_path, diverged=DIVERGED, accuracy=before)
    assert problems(tmp_path) == []
    edit(the_record(tmp_path), "accuracy", "finetune", to=ACCURACY["finetune"])
    assert problems(tmp_path) == [f"{the_record(tmp_path)}: accuracy.finetune: diverged at finetune"]
    edit(the_record(tmp_path), "accuracy", to={})
    found = problems(tmp_path)
    assert [each.split(": ", 1)[1] for each in found] == [
        f"accuracy.{stage}: is missing" for stage in ("baseline", "sparsify", "prune")
    ]


def test_a_run_that_diverged_before_pruning_has_no_cost(tmp_path):
    sound(tmp_path, diverged={**DIVERGED, "stage": "baseline"}, accuracy={}, curves={}, channels={},
          cost={"rule": "a rule"})  # fmt: skip
    assert problems(tmp_path) == []


# The data, read again


def digits(base: Path) -> Path:
    """Write a record on the embedded digits as they are; return its path."""
    changes = {"dataset.name": "digits", "dataset.source": "digits", "dataset.image_size": 8}
    settings = synthetic.record(**changes).config
    record = sound(base, config={**settings, "name": NAME})
    now = verify._data_now(record, base)
    assert now is not None
    path = the_record(base)
    edit(path, "data", to={"name": "digits", "source": "scikit-learn, embedded", **now})
    return path


def test_data_that_are_the_same_pass_and_are_counted(tmp_path):
    digits(tmp_path)
    found = verify.verify(tmp_path / "results", tmp_path / "outputs", tmp_path)
    assert found.text().endswith("1 data sets read again, 0 absent, 0 problems")


@pytest.mark.parametrize(("key", "to"), [("fingerprint", "0" * 64), ("train", 1294)])
def test_other_data_are_found(tmp_path, key, to):
    path = digits(tmp_path)
    edit(path, "data", key, to=to)
    (found,) = verify.verify(tmp_path / "results", tmp_path / "outputs", tmp_path).problems
    assert found.startswith(f"{path}: data.{key}={to}: the data now have ")


def test_data_that_are_not_there_are_no_problem_and_are_not_fetched(tmp_path, monkeypatch):
    asked = []

    def load(settings, cache):
        asked.append((settings.download, settings.root))
        raise UserError("nothing is there")

    monkeypatch.setattr("lpslim.data.datasets.cifar.load", load)
    sound(tmp_path)
    edit(the_record(tmp_path), "config", "dataset", "download", to=True)
    edit(the_record(tmp_path), "config", "dataset", "root", to="/elsewhere/cifar10")
    (tmp_path / "data/cifar10").mkdir(parents=True)
    found = verify.verify(tmp_path / "results", tmp_path / "outputs", tmp_path / "data")
    assert found.text().endswith("0 data sets read again, 1 absent, 0 problems")
    assert asked == [(False, str(tmp_path / "data/cifar10"))]


# The command


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lpslim.experiment.records", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_command_ends_with_one_where_there_is_a_problem(tmp_path):
    sound(tmp_path)
    edit(the_record(tmp_path), "cost", "flops_drop", to=1.0)
    done = run(
        "verify", "--results", str(tmp_path / "results"), "--work-dir", str(tmp_path / "outputs"), "--data"
    )
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        f"{the_record(tmp_path)}: cost.flops_drop=1.0: 394 of 1000 macs is a drop of 60.6",
        "1 records, 5 stages re-hashed, 0 absent, 0 data sets read again, 1 absent, 1 problems",
    ]


@pytest.mark.parametrize("arguments", [[], ["check"], ["verify", "--results", "nowhere"], ["verify", "--x"]])
def test_a_mistake_of_the_users_ends_with_two(arguments):
    done = run(*arguments)
    assert done.returncode == 2
    assert "error:" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_committed_is_sound():
    results = Path(__file__).parents[2] / "results"
    found = verify.verify(results, results / "no stages here")
    assert found.problems == []
    assert found.records > 20
