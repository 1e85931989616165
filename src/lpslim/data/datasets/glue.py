"""GLUE (Wang et al. 2018, arXiv:1804.07461): from the folders of its own download script, or the hub.

The official development set is the test set, as in every paper; validation texts come out of the
training set. Of MNLI's two development sets, ``mnli`` uses the matched one, ``mnli_mm`` the other.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lpslim.base.errors import UserError
from lpslim.data.metrics import TASKS, Task
from lpslim.data.splits import Data
from lpslim.data.tokens import TextSplit, fingerprint, pack, splits
from lpslim.models import encoders

HUB = "nyu-mll/glue"
PAIR = ("sentence1", "sentence2")
BINARY, ENTAILMENT = ("0", "1"), ("entailment", "not_entailment")
NATURAL = ("entailment", "neutral", "contradiction")
NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?")
Row = tuple[tuple[str, ...], float]  # one text or two, label
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layout:
    """Columns of a task's files.

    columns, label: names of texts and label. classes: labels in the order of their numbers, as the hub has
    it; none for a regression. hub: the hub's names of the texts, if they are others. header: the column
    names, of files without that line. dev: file of the development set.
    """

    folder: str
    metric: str
    columns: tuple[str, ...] = PAIR
    label: str = "label"
    classes: tuple[str, ...] = BINARY
    hub: tuple[str, ...] = ()
    header: tuple[str, ...] = ()
    dev: str = "dev"


HYPOTHESIS = ("premise", "hypothesis")
LAYOUTS = {
    "cola": Layout("CoLA", "matthews", ("sentence",), header=("source", "label", "mark", "sentence")),
    "sst2": Layout("SST-2", "accuracy", ("sentence",)),
    "mrpc": Layout("MRPC", "f1", ("#1 String", "#2 String"), "Quality", hub=PAIR),
    "qqp": Layout("QQP", "f1", ("question1", "question2"), "is_duplicate"),
    "stsb": Layout("STS-B", "spearman", label="score", classes=()),
    "mnli": Layout("MNLI", "accuracy", PAIR, "gold_label", NATURAL, HYPOTHESIS, dev="dev_matched"),
    "mnli_mm": Layout("MNLI", "accuracy", PAIR, "gold_label", NATURAL, HYPOTHESIS, dev="dev_mismatched"),
    "qnli": Layout("QNLI", "accuracy", ("question", "sentence"), classes=ENTAILMENT),
    "rte": Layout("RTE", "accuracy", classes=ENTAILMENT),
    "wnli": Layout("WNLI", "accuracy"),
}


def load(settings: Any, cache: Path) -> Data:
    """Return the task ``settings.name`` from ``settings.root``, else from the hub if ``settings.download``.

    Raises:
        UserError: no such task, it is neither there nor may be, or could be, fetched, or a file is broken.
    """
    if settings.name not in LAYOUTS:
        raise UserError(f"dataset.name={settings.name}: must be one of {', '.join(LAYOUTS)}")
    layout = LAYOUTS[settings.name]
    folder = Path(settings.root) / layout.folder
    if (folder / "train.tsv").is_file():
        source = f"GLUE folder {layout.folder}"
        train, test = (list(read(folder / f"{part}.tsv", layout)) for part in ("train", layout.dev))
    elif settings.download:
        source = f"hub {HUB}"
        train, test = _from_hub(settings.name, layout)
    else:
        raise UserError(
            f"dataset.root={settings.root}: no {layout.folder}/train.tsv there. Expected the folders of "
            "GLUE's download script; dataset.download=true fetches the texts from the Hugging Face hub"
        )
    return text_data(settings, source, TASKS[layout.metric], len(layout.classes) or 1, train, test)


def text_data(
    settings: Any, source: str, task: Task, num_classes: int, train: Sequence[Row], test: Sequence[Row]
) -> Data:
    """Return the data set of texts and labels, as tokens of ``settings.tokenizer``."""
    tokenizer, longest = encoders.tokenizer(settings.tokenizer), settings.max_length
    fitted, tested = (_encode(tokenizer, rows, longest, task) for rows in (train, test))
    parts, tokens = splits(fitted, tested, settings.val_fraction), fingerprint(fitted, tested)
    reading = {"max_length": longest}  # the tokens do not show where texts are cut
    return Data(settings.name, source, tokens, num_classes, (3, longest), **parts, task=task, reading=reading)


def _encode(tokenizer: Any, rows: Sequence[Row], longest: int, task: Task) -> TextSplit:
    texts = ([texts[i] for texts, _ in rows] for i in range(len(rows[0][0])))
    labels = torch.tensor([label for _, label in rows]).to(torch.float32 if task.regression else torch.long)
    return pack(tokenizer(*texts, truncation=True, max_length=longest, return_token_type_ids=True), labels)


def read(path: Path, layout: Layout) -> Iterator[Row]:
    """Yield texts and label of every line; quotes are text like any other.

    A line without all of its fields, of which QQP has a few, is left out, and that is logged.

    Raises:
        UserError: there is no such file, it is no UTF-8, lacks a column, or has a label that is none.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(f"{path}: expected a file of UTF-8 text ({problem})") from problem
    rows = [line.rstrip("\r").split("\t") for line in lines if line.strip()]
    header = list(layout.header) or (rows[0] if rows else [])
    if lacking := [name for name in (*layout.columns, layout.label) if name not in header]:
        raise UserError(f"{path}: has no column {lacking[0]!r} among {', '.join(header)[:200]}")
    texts, label = [header.index(name) for name in layout.columns], header.index(layout.label)
    first = 0 if layout.header else 1
    whole = [(n, row) for n, row in enumerate(rows, 1) if n > first and len(row) > max(*texts, label)]
    if not whole:
        raise UserError(f"{path}: holds no texts")
    if broken := len(rows) - first - len(whole):
        log.info("%s: %d lines without all fields left out", path, broken)
    for number, row in whole:
        yield tuple(row[i] for i in texts), _label(row[label], layout, f"{path}, line {number}")


def _label(text: str, layout: Layout, where: str) -> float:
    if text in layout.classes:
        return layout.classes.index(text)
    if layout.classes or not NUMBER.fullmatch(text):
        allowed = f"one of {', '.join(layout.classes)}" if layout.classes else "a number"
        raise UserError(f"{where}: label {text!r} must be {allowed}")
    return float(text)


def _from_hub(name: str, layout: Layout) -> list[list[Row]]:
    encoders.hub_answers()  # first: the hub's packages look once, when they are imported
    try:
        from datasets import load_dataset

        parts = load_dataset(HUB, name.removesuffix("_mm"))
    except ImportError as problem:
        hint = "GLUE comes through the package datasets: pip install 'lpslim[glue]'"
        raise UserError(f"dataset.download=true: {hint}") from problem
    except Exception as problem:  # the hub's clients raise a dozen kinds when they cannot reach it
        reason = (str(problem).splitlines() or [type(problem).__name__])[0][:160]
        raise UserError(f"dataset.name={name}: cannot be fetched from the hub ({reason})") from problem
    columns = layout.hub or layout.columns
    return [
        [(tuple(str(row[column]) for column in columns), row["label"]) for row in parts[part]]
        for part in ("train", layout.dev.replace("dev", "validation"))
    ]
