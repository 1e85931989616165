"""Acceptable sentences and others, made by a small grammar: a text task with nothing to download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lpslim import grammar
from lpslim.data.glue import assemble
from lpslim.data.glue import reading as reading
from lpslim.splits import Data
from lpslim.tasks import Task

TRAIN, TEST = 2000, 500


def load(settings: Any, cache: Path) -> Data:
    """Return 2,000 sentences to learn from and 500 others, marked as CoLA is, by Matthews' correlation."""
    rows = [((sentence,), float(label)) for sentence, label in grammar.examples(TRAIN + TEST)]
    return assemble(settings, "grammar, embedded", Task("matthews"), 2, rows[:TRAIN], rows[TRAIN:])
