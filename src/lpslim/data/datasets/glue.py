"""GLUE (Wang et al. 2018, arXiv:1804.07461): from the folders of its own download script, or the hub.

The official development set is the test set, as in every paper; validation texts come out of the
training set. Of MNLI's two development sets, ``mnli`` uses the matched one, ``mnli_mm`` the other.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lpslim.base.errors import UserError
from lpslim.data.metrics import TASKS, Task
from lpslim.data.splits import Data, hold_out
from lpslim.data.tokens import READING, TextSplit, fingerprint, pack
from lpslim.models import encoders

HUB = "nyu-mll/glue"
PAIR = ("sentence1", "sentence2")
ENTAILMENT, NATURAL = ("entailment", "not_entailment"), ("entailment", "neutral", "contradiction")
NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?")
Rows = Sequence[tuple[tuple[str, ...], float]]  # one text or two, label
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layout:
    """Columns of a task's files.

    columns, hub: names of the texts there, and on the hub if they are others. classes: labels in the order of
    the hub's numbers; none for a regression. header: of files without that line. dev: the development set.
    """

    folder: str
    metric: str
    columns: tuple[str, ...] = PAIR
    label: str = "label"
    classes: tuple[str, ...] = ("0", "1")
    hub: tuple[str, ...] = ()
    header: tuple[str, ...] = ()
    dev: str = "dev"


MNLI = Layout("MNLI", "accuracy", PAIR, "gold_label", NATURAL, ("premise", "hypothesis"), dev="dev_matched")
LAYOUTS = {
    "cola": Layout("CoLA", "matthews", ("sentence",), header=("source", "label", "mark", "sentence")),
    "sst2": Layout("SST-2", "accuracy", ("sentence",)),
    "mrpc": Layout("MRPC", "f1", ("#1 String", "#2 String"), "Quality", hub=PAIR),
    "qqp": Layout("QQP", "f1", ("question1", "question2"), "is_duplicate"),
    "stsb": Layout("STS-B", "spearman", label="score", classes=()),
    "mnli": MNLI,
    "mnli_mm": replace(MNLI, dev="dev_mismatched"),
    "qnli": Layout("QNLI", "accuracy", ("question", "sentence"), classes=ENTAILMENT),
    "rte": Layout("RTE", "accuracy", classes=ENTAILMENT),
    "wnli": Layout("WNLI", "accuracy"),
}


def load(settings: Any, cache: Path) -> Data:
    """Return the task ``settings.name`` from ``settings.root``, else from the hub if ``settings.download``.

    UserError: no such task, it is neither there nor may be, or could be, fetched, or a file is broken.
    """
    if settings.name not in LAYOUTS:
        raise UserError(f"dataset.name={settings.name}: must be one of {', '.join(LAYOUTS)}")
    layout = LAYOUTS[settings.name]
    folder = Path(settings.root) / layout.folder
    if (folder / "train.tsv").is_file():
        source = f"GLUE folder {layout.folder}"
        train, test = (read(folder / f"{part}.tsv", layout) for part in ("train", layout.dev))
    elif settings.download:
        source = f"hub {HUB}"
        train, test = _from_hub(settings.name, layout)
    else:
        where = f"dataset.root={settings.root}: no {layout.folder}/train.tsv there"
        raise UserError(f"{where}; dataset.download=true fetches the texts from the Hugging Face hub")
    return text_data(settings, source, TASKS[layout.metric], len(layout.classes) or 1, train, test)


def text_data(settings: Any, source: str, task: Task, num_classes: int, train: Rows, test: Rows) -> Data:
    """Return the data set of texts and labels, as tokens of ``settings.tokenizer``."""
    tokenizer, longest = encoders.tokenizer(settings.tokenizer), settings.max_length

    def encode(rows: Rows) -> TextSplit:
        columns = [list(column) for column in zip(*(texts for texts, _ in rows), strict=True)]
        encoded = tokenizer(*columns, truncation=True, max_length=longest, return_token_type_ids=True)
        labels = torch.tensor([label for _, label in rows])
        return pack(encoded, labels.to(torch.float32 if task.regression else torch.long), tokenizer)

    whole, tested = encode(train), encode(test)
    fit, val = (whole.take(rows) for rows in hold_out(len(whole), settings.val_fraction))
    tokens, reading = fingerprint(whole, tested), {"max_length": longest, **READING}
    return Data(settings.name, source, tokens, num_classes, (3, longest), fit, val, tested, task, reading)


def read(path: Path, layout: Layout) -> Rows:
    """Return texts and label of every line; quotes are text like any other.

    A line without all of its fields, of which QQP has a few, is left out, and that is logged. UserError:
    there is no such file, it is no UTF-8, lacks a column, or has a label that is none.
    """
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")  # a text may hold a lone carriage return
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(f"{path}: expected a file of UTF-8 text ({problem})") from problem
    rows = [line.rstrip("\r").split("\t") for line in lines if line.strip()]
    header = list(layout.header) or (rows.pop(0) if rows else [])
    if lacking := [name for name in (*layout.columns, layout.label) if name not in header]:
        raise UserError(f"{path}: has no column {lacking[0]!r} among {', '.join(header)[:200]}")
    *texts, label = (header.index(name) for name in (*layout.columns, layout.label))
    whole = [row for row in rows if len(row) > max(*texts, label)]
    if not whole:
        raise UserError(f"{path}: holds no texts")
    if broken := len(rows) - len(whole):
        log.info("%s: %d lines without all fields left out", path, broken)
    numbers: dict[str, float] = {name: number for number, name in enumerate(layout.classes)}
    if not layout.classes:
        numbers = {row[label]: float(row[label]) for row in whole if NUMBER.fullmatch(row[label])}
    if wrong := [row[label] for row in whole if row[label] not in numbers]:
        raise UserError(f"{path}: label {wrong[0]!r} must be {' or '.join(layout.classes) or 'a number'}")
    return [(tuple(row[i] for i in texts), numbers[row[label]]) for row in whole]


def _from_hub(name: str, layout: Layout) -> list[Rows]:
    encoders.hub_answers()  # first: the hub's packages look once, when they are imported
    try:
        from datasets import load_dataset

        parts = load_dataset(HUB, name.removesuffix("_mm"))
    except Exception as problem:  # no package, or any of a dozen kinds where the hub is out of reach
        reason = (str(problem).splitlines() or [type(problem).__name__])[0][:160]
        raise UserError(f"dataset.name={name}: no texts from the hub by lpslim[glue] ({reason})") from problem
    columns, splits = layout.hub or layout.columns, ("train", layout.dev.replace("dev", "validation"))
    return [[(tuple(str(row[c]) for c in columns), row["label"]) for row in parts[s]] for s in splits]
