"""GLUE's files as its own download script leaves them, with their quirks."""

from types import SimpleNamespace

import pytest

from lpslim.base.errors import UserError
from lpslim.data import glue
from lpslim.data import grammar as grammar_data
from lpslim.data.datasets import toy_text

LINES = {  # a first line of each task's train.tsv, and what it says
    "cola": ("gj04\t1\t\tthe cat sleeps .\n", ("the cat sleeps .",), 1),
    "sst2": ("sentence\tlabel\nan old cat \t0\n", ("an old cat ",), 0),
    "mrpc": (
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tsaid \"a\" .\t\"b\n",
        ('said "a" .', '"b'),
        1,
    ),
    "qqp": ("id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t1\t2\ta?\tb?\t1\n", ("a?", "b?"), 1),
    "stsb": ("index\tsentence1\tsentence2\tscore\n0\ta\tb\t3.800\n", ("a", "b"), 3.8),
    "mnli": ("i\tsentence1\tsentence2\tlabel1\tgold_label\n0\ta\tb\tneutral\tcontradiction\n", ("a", "b"), 2),
    "qnli": ("index\tquestion\tsentence\tlabel\n0\ta?\tb\tnot_entailment\n", ("a?", "b"), 1),
    "rte": ("index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n", ("a", "b"), 0),
    "wnli": ("index\tsentence1\tsentence2\tlabel\n0\ta\tb\t1\n", ("a", "b"), 1),
}  # fmt: skip


def written(tmp_path, name, content):
    path = tmp_path / f"{name}.tsv"
    path.write_bytes(content.encode())
    return path


@pytest.mark.parametrize("name", LINES)
def test_every_layout(tmp_path, name):
    content, texts, label = LINES[name]
    assert list(glue.read(written(tmp_path, name, content), glue.LAYOUTS[name])) == [(texts, label)]


def test_lines_end_as_they_end_and_a_broken_one_is_left_out(tmp_path, caplog):
    caplog.set_level("INFO")
    path = written(tmp_path, "x", "sentence\tlabel\r\na\t1\r\n\r\nbroken\nb\x85c\t0")
    assert list(glue.read(path, glue.LAYOUTS["sst2"])) == [(("a",), 1), (("b\x85c",), 0)]
    assert "1 lines without all fields left out" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sentence\tmark\na\t1\n", "has no column 'label' among sentence, mark"),
        ("sentence\tlabel\na\tyes\n", "line 2: label 'yes' must be one of 0, 1"),
        ("sentence\tlabel\n", "holds no texts"),
        ("", "has no column 'sentence' among "),
    ],
)
def test_a_broken_file_is_refused(tmp_path, content, message):
    path = written(tmp_path, "x", content)
    with pytest.raises(UserError) as refused:
        list(glue.read(path, glue.LAYOUTS["sst2"]))
    assert str(refused.value).startswith(str(path))
    assert str(refused.value).endswith(message)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "x.tsv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is not UTF-8 text"):
        list(glue.read(path, glue.LAYOUTS["sst2"]))


def settings(root, name="rte", **more):
    return SimpleNamespace(name=name, root=str(root), download=False, tokenizer="tiny", max_length=16,
                           val_fraction=0.25, **more)  # fmt: skip


def folder(root, name, rows):
    layout = glue.LAYOUTS[name]
    (root / layout.folder).mkdir(parents=True)
    for part in ("train", layout.dev):
        (root / layout.folder / f"{part}.tsv").write_text(rows, encoding="utf-8")


def test_a_folder_becomes_token_ids_of_pairs(tmp_path):
    folder(
        tmp_path, "rte", "index\tsentence1\tsentence2\tlabel\n" + "0\tthe cat\ta dog\tnot_entailment\n" * 8
    )
    data = glue.load(settings(tmp_path), tmp_path)
    assert (len(data.train), len(data.val), len(data.test)) == (6, 2, 8)
    assert (data.num_classes, data.shape, data.task.metric) == (2, (3, 16), "accuracy")
    ((inputs, labels),) = data.test.eval_batches(8)
    assert inputs[0, 2].tolist() == [0, 0, 0, 0, 1, 1, 1]  # [CLS] the cat [SEP] a dog [SEP]
    assert labels.tolist() == [1] * 8


def test_scores_are_numbers(tmp_path):
    folder(tmp_path, "stsb", "index\tsentence1\tsentence2\tscore\n" + "0\tthe cat\ta dog\t2.5\n" * 4)
    data = glue.load(settings(tmp_path, "stsb"), tmp_path)
    assert (data.num_classes, data.task.regression) == (1, True)
    assert data.test.labels.tolist() == [2.5] * 4


def test_the_two_development_sets_of_mnli_are_told_apart():
    assert glue.LAYOUTS["mnli"].dev == "dev_matched"
    assert glue.LAYOUTS["mnli_mm"].dev == "dev_mismatched"


def test_long_texts_are_cut(tmp_path):
    folder(tmp_path, "sst2", "sentence\tlabel\n" + ("the cat " * 30 + "\t1\n") * 4)
    data = glue.load(settings(tmp_path, "sst2"), tmp_path)
    assert data.test.starts.diff().tolist() == [16] * 4


@pytest.mark.parametrize(
    ("name", "message"),
    [("rte", "no RTE/train.tsv there"), ("glue", "dataset.name=glue: must be one of cola, sst2,")],
)
def test_what_is_not_there_is_said(tmp_path, name, message):
    with pytest.raises(UserError, match=message):
        glue.load(settings(tmp_path, name), tmp_path)


class TestGrammar:
    def test_sentences_differ_and_half_are_acceptable(self):
        found = grammar.examples(400)
        assert len({sentence for sentence, _ in found}) == 400
        assert sum(label for _, label in found) == 200
        assert found == grammar.examples(400) != grammar.examples(400, seed=1)

    def test_every_word_is_in_the_vocabulary(self):
        assert {word for sentence, _ in grammar.examples(400) for word in sentence.split()} <= {
            *grammar.WORDS
        }

    def test_a_simple_sentence_agrees_if_and_only_if_it_is_acceptable(self):
        seen = set()
        for sentence, label in grammar.examples(2000):
            first, *rest = sentence.split()
            nouns = [word for word in rest if word in sum(grammar.NOUNS, ())]
            if len(nouns) > 1:
                continue
            number = nouns[0] in grammar.NOUNS[1]
            verbs = (*grammar.INTRANSITIVE[number], *grammar.TRANSITIVE[number])
            agrees = first in grammar.DETERMINERS[number] and any(word in verbs for word in rest)
            assert agrees == bool(label), sentence
            seen.add(label)
        assert seen == {0, 1}

    def test_the_data_set_is_the_same_every_time(self, tmp_path):
        one, two = (grammar_data.load(settings(tmp_path, "grammar"), tmp_path) for _ in range(2))
        assert one.fingerprint == two.fingerprint
        assert (len(one.train) + len(one.val), len(one.test)) == (2000, 500)
        assert not (one.train.ids == 1).any()  # [UNK]
