"""Toy texts: different sentences, half of them acceptable by the grammar's own rules."""

from lpslim.data.datasets import toy_text
from lpslim.models.encoders import WORDS
from tests.data.making import settings


def test_sentences_differ_every_time_the_same_and_half_are_acceptable(tmp_path):
    examples = toy_text.examples(400)
    assert len({sentence for sentence, _ in examples}) == 400
    assert sum(label for _, label in examples) == 200
    assert examples == toy_text.examples(400) != toy_text.examples(400, seed=1)
    assert {word for sentence, _ in toy_text.examples(2500) for word in sentence.split()} == {*WORDS}
    one, other = (toy_text.load(settings(tmp_path, "toy_text"), tmp_path) for _ in range(2))
    assert one.fingerprint == other.fingerprint
    assert (len(one.train) + len(one.val), len(one.test), one.task.metric) == (2000, 500, "matthews")
    assert not any((text["input_ids"] == 1).any() for text in one.train.texts)  # [UNK]


def test_a_simple_sentence_agrees_if_and_only_if_it_is_acceptable():
    labels = set()
    for sentence, label in toy_text.examples(2000):
        first, *rest = sentence.split()
        nouns = [word for word in rest if word in (*toy_text.NOUNS[0], *toy_text.NOUNS[1])]
        if len(nouns) > 1:
            continue
        number = nouns[0] in toy_text.NOUNS[1]
        verbs = (*toy_text.INTRANSITIVE[number], *toy_text.TRANSITIVE[number])
        agrees = first in toy_text.DETERMINERS[number] and any(word in verbs for word in rest)
        assert agrees == bool(label), sentence
        labels.add(label)
    assert labels == {0, 1}
