"""Acceptable sentences and others, made by a small grammar: a text task with nothing to download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lpslim.data.datasets import toy_text
from lpslim.data.datasets.glue import assemble
from lpslim.data.datasets.glue import reading as reading
from lpslim.data.metrics import Task
from lpslim.data.splits import Data

TRAIN, TEST = 2000, 500


def load(settings: Any, cache: Path) -> Data:
    """Return 2,000 sentences to learn from and 500 others, marked as CoLA is, by Matthews' correlation."""
    rows = [((sentence,), float(label)) for sentence, label in grammar.examples(TRAIN + TEST)]
    return assemble(settings, "grammar, embedded", Task("matthews"), 2, rows[:TRAIN], rows[TRAIN:])
