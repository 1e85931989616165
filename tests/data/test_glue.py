"""GLUE's files as its own download script leaves them, with their quirks."""

import pytest

from lpslim.data import tokens
from lpslim.data.datasets import glue
from tests.data.making import refusal, settings

LINES = {  # a first line of each task's train.tsv, its texts and its label
    "cola": ("gj04\t1\t\tthe cat sleeps .\n", ("the cat sleeps .",), 1),
    "sst2": ("sentence\tlabel\nan old cat \t0\n", ("an old cat ",), 0),
    "mrpc": ('\ufeffQuality\t#1 String\t#2 String\n1\tsaid "a" .\t"b\n', ('said "a" .', '"b'), 1),
    "qqp": ("id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t1\t2\ta?\tb?\t1\n", ("a?", "b?"), 1),
    "stsb": ("index\tsentence1\tsentence2\tscore\n0\ta\tb\t3.800\n", ("a", "b"), 3.8),
    "mnli": ("i\tsentence1\tsentence2\tlabel1\tgold_label\n0\ta\tb\tneutral\tcontradiction\n", ("a", "b"), 2),
    "qnli": ("index\tquestion\tsentence\tlabel\n0\ta?\tb\tnot_entailment\n", ("a?", "b"), 1),
    "rte": ("index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n", ("a", "b"), 0),
    "wnli": ("index\tsentence1\tsentence2\tlabel\n0\ta\tb\t1\n", ("a", "b"), 1),
}  # fmt: skip


@pytest.mark.parametrize("name", LINES)
def test_every_layout(tmp_path, name):
    content, texts, label = LINES[name]
    (tmp_path / "x.tsv").write_text(content, encoding="utf-8")
    assert list(glue.read(tmp_path / "x.tsv", glue.LAYOUTS[name])) == [(texts, label)]


def test_lines_end_as_they_end_and_a_broken_one_is_left_out(tmp_path, caplog):
    caplog.set_level("INFO")
    (tmp_path / "x.tsv").write_bytes("sentence\tlabel\r\na\rz\t1\r\n\r\nbroken\nb\x85c\t0".encode())
    assert list(glue.read(tmp_path / "x.tsv", glue.LAYOUTS["sst2"])) == [(("a\rz",), 1), (("b\x85c",), 0)]
    assert "1 lines without all fields left out" in caplog.text


HEAD = b"index\tsentence1\tsentence2\tscore\n"


def write(root, name, rows):
    layout = glue.LAYOUTS[name]
    (root / layout.folder).mkdir(parents=True)
    for part in ("train", layout.dev):
        (root / layout.folder / f"{part}.tsv").write_bytes(rows)


def load(root, name):
    return glue.load(settings(root, name, val_fraction=0.25), root)


def test_a_folder_becomes_token_ids_of_pairs(tmp_path):
    lines = b"0\tthe cat\ta dog\tnot_entailment\n" * 8
    write(tmp_path, "rte", b"index\tsentence1\tsentence2\tlabel\n" + lines)
    data = load(tmp_path, "rte")
    assert (len(data.train), len(data.val), len(data.test)) == (6, 2, 8)
    assert (data.num_classes, data.shape, data.task.metric) == (2, (3, 16), "accuracy")
    assert (data.source, data.reading) == ("GLUE folder RTE", {"max_length": 16, **tokens.READING})
    ((inputs, labels),) = data.test.eval_batches(8)
    assert inputs[0, 2].tolist() == [0, 0, 0, 0, 1, 1, 1]  # [CLS] the cat [SEP] a dog [SEP]
    assert labels.tolist() == [1] * 8


def test_scores_are_a_regression_of_two_texts_at_least(tmp_path):
    line = b"0\tthe cat\t" + b"a dog " * 30 + b"\t2.5\n"
    write(tmp_path, "stsb", HEAD + line * 2)
    data = load(tmp_path, "stsb")
    assert (data.num_classes, data.task.regression, data.task.metric) == (1, True, "spearman")
    assert (len(data.train), len(data.val), data.test.labels.tolist()) == (1, 1, [2.5] * 2)
    assert data.test.lengths == [16, 16]  # as many tokens as max_length allows


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("stsb", b"", "has no column 'sentence1' among "),
        ("stsb", b"i\tsentence1\tscore\n0\ta\t1\n", "has no column 'sentence2' among i, sentence1, score"),
        ("stsb", HEAD + b"0\ta\tb\t\n", "label '' must be a number"),
        ("stsb", HEAD + b"0\ta\tb\tnan\n", "label 'nan' must be a number"),
        ("sst2", b"sentence\tlabel\na\tyes\n", "label 'yes' must be 0 or 1"),
        ("stsb", HEAD + b"0\n1\n", "holds no texts"),
        ("stsb", "index\tsentence1".encode("utf-16"), "UTF-8"),
        ("stsb", HEAD + b"0\t\xc3\tb\t1\n", "UTF-8"),
    ],
)
def test_a_spoilt_file_is_refused(tmp_path, name, content, message):
    write(tmp_path, name, content)
    refused = refusal(load, tmp_path, name)
    assert refused.startswith(f"{tmp_path / glue.LAYOUTS[name].folder / 'train.tsv'}")
    assert message in refused


def test_missing_files_names_and_samples_are_refused(tmp_path):
    assert refusal(load, tmp_path, "glue").startswith("dataset.name=glue: must be one of cola, sst2,")
    assert (glue.LAYOUTS["mnli"].dev, glue.LAYOUTS["mnli_mm"].dev) == ("dev_matched", "dev_mismatched")
    message = refusal(load, tmp_path, "rte")
    assert message.startswith(f"dataset.root={tmp_path}: no RTE/train.tsv there")
    assert "dataset.download=true" in message
    write(tmp_path, "sst2", b"sentence\tlabel\na\t1\n")
    assert "1 sample to train on; expected at least 2" in refusal(load, tmp_path, "sst2")
    (tmp_path / "SST-2" / "dev.tsv").unlink()
    assert refusal(load, tmp_path, "sst2").startswith(f"{tmp_path}/SST-2/dev.tsv: expected a file")
