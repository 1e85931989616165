"""The index: what is read through it is what the JSON files say, whatever becomes of either."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa
import pytest
import synthetic
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from lpslim import index, records
from lpslim.errors import UserError
from reproduce import tables

ROOT = Path(__file__).parents[2]
NAME = "vgg16_cifar10/flops60_cos350"
DIVERGED = {"stage": "finetune", "epoch": 1, "step": 3, "loss": "nan"}


@pytest.fixture(autouse=True)
def settled(monkeypatch):
    """Files as young as a test's are indexed."""
    monkeypatch.setattr(index, "UNSETTLED", -(10**12))


def fill(results: Path) -> Path:
    made = [*synthetic.seeds(NAME, [94.1, 94.3, 94.8]), *synthetic.seeds("sweep/a", [91.0, 92.0], p=3.0)]
    made += [synthetic.record("sweep/b", diverged=DIVERGED, accuracy={}, cost={"rule": "r"})]
    return synthetic.write(results, *made)


@pytest.fixture
def results(tmp_path):
    found = fill(tmp_path / "results")
    index.read_all(found)
    return found


def files(results: Path) -> list[Path]:
    return sorted((results / "records").rglob("*.json"))


def agree(results: Path) -> None:
    assert index.read_all(results) == records.read_all(results)


def unread(results: Path, monkeypatch) -> list[records.Record]:
    """Read everything, and fail if one JSON file is opened for it."""
    with monkeypatch.context() as patched:
        patched.setattr(records, "read", lambda path: pytest.fail(f"{path} was read"))
        return index.read_all(results)


def change(path: Path, **fields) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}, indent=1) + "\n")


def test_what_is_indexed_is_what_was_read_and_no_file_is_read_for_it(results, monkeypatch):
    found, read = unread(results, monkeypatch), records.read_all(results)
    assert [asdict(each) for each in found] == [asdict(each) for each in read]
    assert found == read
    assert [(e.settings, e.asked, e.epochs) for e in found] == [(e.settings, e.asked, e.epochs) for e in read]
    assert replace(found[0], seed=9) == replace(read[0], seed=9)
    with pytest.raises(AttributeError, match="a record has no colour"):
        _ = found[0].colour


def test_runs_over_seeds_share_their_settings(results, monkeypatch):
    one, two, *_ = unread(results, monkeypatch)
    assert one.seed != two.seed
    assert one.config["seed"] == one.seed
    assert one.settings is two.settings


def test_a_configuration_with_another_seed_than_its_record_is_kept(tmp_path):
    path = records.write(tmp_path, synthetic.record("own/row", 3))
    change(path, seed=4)
    for _ in range(2):
        (found,) = index.read_all(tmp_path)
        assert (found.seed, found.config["seed"]) == (4, 3)


def same_size(path: Path, results: Path) -> None:
    """Change an accuracy in place, and put the time of modification back."""
    before, text = path.stat(), path.read_text()
    changed = text.replace('"last": 9', '"last": 8', 1)
    path.write_text(changed)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


def truncate(path: Path, results: Path) -> None:
    stored = results / index.NAME
    stored.write_bytes(stored.read_bytes()[: stored.stat().st_size // 2])


WAYS = {
    "changed": lambda path, results: change(path, seconds={"baseline": 7.0}),
    "changed, of the same size and time": same_size,
    "replaced": lambda path, results: os.replace(path.rename(path.with_suffix(".old")), path),
    "removed": lambda path, results: path.unlink(),
    "renamed": lambda path, results: path.rename(path.with_name("0" * 16 + ".json")),
    "added": lambda path, results: (path.parent / ("f" * 16 + ".json")).write_bytes(path.read_bytes()),
    "a link": lambda path, results: (path.parent / "link.json").symlink_to(path),
    "a link to nothing of ours": lambda path, results: (path.parent / "folder").symlink_to(path.parent),
    "another folder": lambda path, results: fill(results / "records" / "more"),
    "the index gone": lambda path, results: (results / index.NAME).unlink(missing_ok=True),
    "the index truncated": truncate,
}


@pytest.mark.parametrize("way", WAYS)
def test_what_became_of_a_file_is_seen(way, results):
    WAYS[way](files(results)[1], results)
    agree(results)
    agree(results)


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(sorted(WAYS)), st.integers(0, 9)), max_size=6))
def test_tables_through_the_index_are_those_of_the_files(steps):
    with tempfile.TemporaryDirectory() as folder:
        results = fill(Path(folder) / "results")
        for way, at in steps:
            index.read_all(results)
            if left := [path for path in files(results) if path.is_file()]:
                with suppress(FileExistsError, FileNotFoundError):
                    WAYS[way](left[at % len(left)], results)
        found, read = index.read_all(results), [records.read(path) for path in files(results)]
        assert found == read
        outcomes = []
        for shown in (found, read, index.read_all(results)):
            try:
                outcomes.append(tables.documents(shown, "last"))
            except UserError as problem:  # the same run twice, under another file's name
                outcomes.append(str(problem))
        assert outcomes[0] == outcomes[1] == outcomes[2]


@given(st.integers(0, 10**6), st.integers(1, 255), st.booleans())
def test_a_damaged_index_changes_nothing(at, bits, is_cut):
    with tempfile.TemporaryDirectory() as folder:
        results = fill(Path(folder))
        index.read_all(results)
        stored = results / index.NAME
        content = bytearray(stored.read_bytes())
        content[at % len(content)] ^= bits
        stored.write_bytes(content[: at % len(content)] if is_cut else content)
        agree(results)


def rewritten(results: Path, **columns: list[str]) -> None:
    """Replace columns of the index, as nobody but a forger would."""
    path = results / index.NAME
    table = parquet.read_table(path)
    for name, texts in columns.items():
        at = table.schema.get_field_index(name)
        column = pa.array(texts, table.schema.field(at).type)
        table = table.set_column(at, table.schema.field(at), column)
    parquet.write_table(table, path)


FORGED = {
    "no JSON": {"accuracy": ["{"] * 6},
    "two values in one": {"cost": ["{},{}", *["{}"] * 4, ""]},
    "another kind": {"stages": ["[]"] * 6},
    "no text": {"data": [None] * 6},
    "one path for all": {"path": ["a.json"] * 6},
}


@pytest.mark.parametrize("kind", FORGED)
def test_a_forged_structure_is_not_believed(kind, results):
    with suppress(pa.ArrowException, ValueError):  # what pyarrow itself refuses to write
        rewritten(results, **FORGED[kind])
    agree(results)


def test_a_field_that_turns_out_damaged_is_read_from_its_record(results):
    rewritten(results, curves=["{"] * 6)
    agree(results)
    assert not (results / index.NAME).exists()  # the next reader makes another
    agree(results)
    assert (results / index.NAME).exists()


def test_an_index_of_other_code_or_columns_is_made_again(results, monkeypatch):
    before = (results / index.NAME).read_bytes()
    monkeypatch.setattr(index, "_code", lambda: b"older")
    agree(results)
    assert (results / index.NAME).read_bytes() != before
    parquet.write_table(pa.table({"path": ["x"]}).replace_schema_metadata({index.CODE: b"older"}),
                        results / index.NAME)  # fmt: skip
    agree(results)
    unread(results, monkeypatch)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_where_no_index_can_be_written_the_files_are_read(make, tmp_path):
    results = fill(tmp_path)
    make(results / index.NAME)
    agree(results)
    agree(results)


def test_a_folder_that_cannot_be_written_to_is_read(tmp_path, monkeypatch):
    def refuse(**options):
        raise PermissionError("read-only file system")

    results = fill(tmp_path)
    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    agree(results)
    assert not (results / index.NAME).exists()


def test_a_file_that_is_no_record_is_refused_as_ever_and_the_others_are_not_read_again(results, monkeypatch):
    bad = files(results)[3]
    bad.write_text("{}")
    for _ in range(2):
        with pytest.raises(UserError) as expected:
            records.read_all(results)
        with pytest.raises(UserError) as found:
            index.read_all(results)
        assert str(found.value) == str(expected.value)
    bad.unlink()
    assert unread(results, monkeypatch) == records.read_all(results)


def test_a_file_that_may_still_change_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "UNSETTLED", 10**12)
    results = fill(tmp_path)
    agree(results)
    assert not (results / index.NAME).exists()


def test_a_few_new_records_among_many_are_read_and_not_yet_indexed(tmp_path):
    results = synthetic.write(tmp_path, *synthetic.seeds("sweep/many", [90.0] * 2 * index.WORTH))
    agree(results)
    before = (results / index.NAME).read_bytes()
    records.write(results, synthetic.record("sweep/more"))
    agree(results)
    assert (results / index.NAME).read_bytes() == before
    synthetic.write(results, *synthetic.seeds("sweep/rest", [90.0] * 3))
    agree(results)
    assert (results / index.NAME).read_bytes() != before


def test_no_records(tmp_path):
    assert index.read_all(tmp_path) == []
    assert not list(tmp_path.iterdir())


READER = """
import sys
from pathlib import Path
from lpslim import index, records
index.UNSETTLED, results = -10**12, Path(sys.argv[1])
for _ in range(15):
    (results / index.NAME).unlink(missing_ok=True)
    assert index.read_all(results) == index.read_all(results) == records.read_all(results)
"""


def test_processes_that_read_and_write_at_once(results):
    readers = [subprocess.Popen([sys.executable, "-c", READER, str(results)], cwd=ROOT) for _ in range(3)]
    assert [reader.wait() for reader in readers] == [0, 0, 0]
    assert sorted(path.name for path in results.iterdir()) == [index.NAME, "records"]
    agree(results)


def test_tables_are_rendered_without_torch():
    code = "import sys, reproduce.tables; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_benchmark_measures_records_that_are_valid(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from benchmarks import records as benchmark

    made = list(benchmark.drawn(600))
    assert made == list(benchmark.drawn(600))
    sizes = [benchmark.write(tmp_path, each) for each in made]
    assert 4_000 < sum(sizes) / len(sizes) < 8_000
    found = index.read_all(tmp_path)
    ordered = sorted(made, key=lambda each: (each["experiment"], each["key"]))
    assert found == [records.Record(**each) for each in ordered]
    assert sum(bool(each.diverged) for each in found) == 1
    files, _ = tables.documents(found, "last")
    assert "(n=5)" in files["measured.md"]
