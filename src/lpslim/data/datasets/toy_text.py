"""Toy texts: acceptable English sentences and others, made by a small grammar; nothing to download.

Subjects and verbs agree in number, across prepositional phrases and relative clauses; determiners agree
with their nouns. An unacceptable sentence has a single fault.
"""

import random
from pathlib import Path
from typing import Any

from lpslim.data.datasets.glue import text_data
from lpslim.data.metrics import TASKS
from lpslim.data.splits import Data

TRAIN, TEST = 2000, 500
# in the singular and in the plural; all words are in lpslim.models.encoders.WORDS
DETERMINERS = (("the", "a", "this", "every"), ("the", "some", "these", "many"))
NOUNS = (
    ("cat", "dog", "teacher", "child", "pilot", "river", "king", "farmer"),
    ("cats", "dogs", "teachers", "children", "pilots", "rivers", "kings", "farmers"),
)
ADJECTIVES = ("old", "small", "quiet", "clever", "brown")
PREPOSITIONS = ("near", "behind", "with", "above")
TRANSITIVE = (("sees", "helps", "follows", "admires"), ("see", "help", "follow", "admire"))
INTRANSITIVE = (("sleeps", "waits", "sings", "smiles"), ("sleep", "wait", "sing", "smile"))
ADVERBS = ("often", "here", "quietly", "today")


def load(settings: Any, cache: Path) -> Data:
    """Return 2,000 sentences for training and 500 for the test, with CoLA's metric, Matthews' correlation."""
    rows = [((sentence,), float(label)) for sentence, label in examples(TRAIN + TEST)]
    return text_data(settings, "grammar, embedded", TASKS["matthews"], 2, rows[:TRAIN], rows[TRAIN:])


def examples(count: int, seed: int = 0) -> list[tuple[str, int]]:
    """Return ``count`` different sentences, every other one acceptable (label 1), in random order."""
    draw = random.Random(seed)
    labels: dict[str, int] = {}
    while len(labels) < count:
        label = len(labels) % 2
        labels.setdefault(" ".join(_sentence(draw, fault=not label)), label)
    pairs = list(labels.items())
    draw.shuffle(pairs)
    return pairs


def _sentence(draw: random.Random, fault: bool) -> list[str]:
    number = draw.choice((0, 1))
    kind = draw.choice(("verb", "determiner")) if fault else ""
    verb_number = 1 - number if kind == "verb" else number
    subject = _noun_phrase(draw, number, deep=True, fault=kind == "determiner")
    if draw.random() < 0.5:
        predicate = [draw.choice(INTRANSITIVE[verb_number])]
        predicate += [draw.choice(ADVERBS)] if draw.random() < 0.5 else []
    else:
        predicate = [draw.choice(TRANSITIVE[verb_number]), *_noun_phrase(draw, draw.choice((0, 1)))]
    return [*subject, *predicate, "."]


def _noun_phrase(draw: random.Random, number: int, deep: bool = False, fault: bool = False) -> list[str]:
    # a fault takes a determiner that only the other number has: "the" fits both
    determiners = DETERMINERS[1 - number][1:] if fault else DETERMINERS[number]
    words = [draw.choice(determiners)]
    words += [draw.choice(ADJECTIVES)] if draw.random() < 0.3 else []
    words.append(draw.choice(NOUNS[number]))
    if deep and (kind := draw.random()) < 0.7:
        if kind < 0.35:
            words.append(draw.choice(PREPOSITIONS))
        else:
            words += ["that", draw.choice(TRANSITIVE[number])]
        words += _noun_phrase(draw, draw.choice((0, 1)))
    return words
