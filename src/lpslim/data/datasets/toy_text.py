"""A small grammar of English that tells acceptable sentences from others: a text task for everyone.

Subjects and verbs agree in number, across prepositional phrases and relative clauses; determiners agree
with their nouns. An unacceptable sentence is an acceptable one with a single fault.
"""

from __future__ import annotations

import random

SINGULAR, PLURAL = 0, 1
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
THAT, STOP = "that", "."
WORDS = tuple(
    sorted({*sum((*DETERMINERS, *NOUNS, *TRANSITIVE, *INTRANSITIVE), ()),
            *ADJECTIVES, *PREPOSITIONS, *ADVERBS, THAT, STOP})
)  # fmt: skip
Example = tuple[str, int]


def examples(count: int, seed: int = 0) -> list[Example]:
    """Return ``count`` different sentences, every other one acceptable (label 1), in random order."""
    draw = random.Random(seed)
    found: dict[str, int] = {}
    while len(found) < count:
        label = len(found) % 2
        words = _sentence(draw, fault=not label)
        found.setdefault(" ".join(words), label)
    pairs = list(found.items())
    draw.shuffle(pairs)
    return pairs


def _sentence(draw: random.Random, fault: bool) -> list[str]:
    number = draw.choice((SINGULAR, PLURAL))
    kind = draw.choice(("verb", "determiner")) if fault else ""
    verb_number = 1 - number if kind == "verb" else number
    subject = _noun_phrase(draw, number, deep=True, fault=kind == "determiner")
    if draw.random() < 0.5:
        predicate = [draw.choice(INTRANSITIVE[verb_number])]
        predicate += [draw.choice(ADVERBS)] if draw.random() < 0.5 else []
    else:
        predicate = [draw.choice(TRANSITIVE[verb_number]), *_any_noun_phrase(draw)]
    return [*subject, *predicate, STOP]


def _noun_phrase(draw: random.Random, number: int, deep: bool, fault: bool = False) -> list[str]:
    # a fault takes a determiner that only the other number has: "the" fits both
    determiners = DETERMINERS[1 - number][1:] if fault else DETERMINERS[number]
    words = [draw.choice(determiners)]
    words += [draw.choice(ADJECTIVES)] if draw.random() < 0.3 else []
    words.append(draw.choice(NOUNS[number]))
    if deep and (kind := draw.random()) < 0.7:
        if kind < 0.35:
            words += [draw.choice(PREPOSITIONS), *_any_noun_phrase(draw)]
        else:
            words += [THAT, draw.choice(TRANSITIVE[number]), *_any_noun_phrase(draw)]
    return words


def _any_noun_phrase(draw: random.Random) -> list[str]:
    return _noun_phrase(draw, draw.choice((SINGULAR, PLURAL)), deep=False)
