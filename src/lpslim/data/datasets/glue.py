"""GLUE (Wang et al. 2018, arXiv:1804.07461): from the folders of its own download script, or the hub.

The official development set is the test set, as in every paper; validation texts come out of the
training set. Of MNLI's two development sets, ``mnli`` is marked on the matched one, ``mnli_mm`` on the other.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lpslim.base.errors import UserError
from lpslim.data.folders import check_count
from lpslim.data.metrics import Task
from lpslim.data.splits import Data
from lpslim.data.tokens import TextSplit, fingerprint, pack, splits
from lpslim.models import encoders

log = logging.getLogger(__name__)

HUB = "nyu-mll/glue"
PAIR = ("sentence1", "sentence2")
BINARY, ENTAILMENT = ("0", "1"), ("entailment", "not_entailment")
Row = tuple[tuple[str, ...], float]


@dataclass(frozen=True)
class Layout:
    """Where a task's texts and labels stand.

    columns, label: by their names in the files. header: the names, of files without that line.
    classes: labels in the order of their numbers, as the hub has it; none where the label is a number.
    dev, hub_dev: the development set, in the folder and on the hub. hub, hub_name: the hub's names of
    the texts and of the task, where they are others.
    """

    folder: str
    metric: str
    columns: tuple[str, ...] = PAIR
    label: str = "label"
    classes: tuple[str, ...] = BINARY
    hub: tuple[str, ...] = ()
    header: tuple[str, ...] = ()
    dev: str = "dev"
    hub_dev: str = "validation"
    hub_name: str = ""


NATURAL = ("entailment", "neutral", "contradiction")
LAYOUTS = {
    "cola": Layout("CoLA", "matthews", ("sentence",), header=("source", "label", "mark", "sentence")),
    "sst2": Layout("SST-2", "accuracy", ("sentence",)),
    "mrpc": Layout("MRPC", "f1", ("#1 String", "#2 String"), "Quality", hub=PAIR),
    "qqp": Layout("QQP", "f1", ("question1", "question2"), "is_duplicate"),
    "stsb": Layout("STS-B", "spearman", label="score", classes=()),
    "mnli": Layout("MNLI", "accuracy", label="gold_label", classes=NATURAL, hub=("premise", "hypothesis"),
                   dev="dev_matched", hub_dev="validation_matched"),
    "mnli_mm": Layout("MNLI", "accuracy", label="gold_label", classes=NATURAL, hub=("premise", "hypothesis"),
                      dev="dev_mismatched", hub_dev="validation_mismatched", hub_name="mnli"),
    "qnli": Layout("QNLI", "accuracy", ("question", "sentence"), classes=ENTAILMENT),
    "rte": Layout("RTE", "accuracy", classes=ENTAILMENT),
    "wnli": Layout("WNLI", "accuracy"),
}  # fmt: skip


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
        rows = [list(read(folder / f"{part}.tsv", layout)) for part in ("train", layout.dev)]
        check_count(len(rows[0]), folder / "train.tsv")
    elif settings.download:
        source, rows = f"hub {HUB}", _from_hub(settings.name, layout)
    else:
        raise UserError(
            f"dataset.root={settings.root}: no {layout.folder}/train.tsv there. Expected are the folders "
            "that GLUE's download script makes; dataset.download=true fetches them from the Hugging Face hub"
        )
    return assemble(settings, source, Task(layout.metric), len(layout.classes) or 1, rows[0], rows[1])


def reading(settings: Any) -> dict[str, Any]:
    """Return the setting that the tokens alone do not tell: at how many texts are cut."""
    return {"max_length": settings.max_length}


def assemble(
    settings: Any, source: str, task: Task, num_classes: int, train: Sequence[Row], test: Sequence[Row]
) -> Data:
    """Return the data set of texts and labels, in the tokens of ``settings.tokenizer``."""
    tokenizer = pretrained.tokenizer(settings.tokenizer)
    trained, tested = (_encode(tokenizer, rows, settings.max_length, task) for rows in (train, test))
    return Data(
        name=settings.name,
        source=source,
        fingerprint=fingerprint(trained, tested),
        num_classes=num_classes,
        shape=(3, settings.max_length),
        task=task,
        reading=reading(settings),
        **splits(trained, tested, settings.val_fraction),
    )


def _encode(tokenizer: Any, rows: Sequence[Row], longest: int, task: Task) -> TextSplit:
    texts = ([texts[i] for texts, _ in rows] for i in range(len(rows[0][0])))
    kind = torch.float32 if task.regression else torch.long
    labels = torch.tensor([label for _, label in rows]).to(kind)
    encoded = tokenizer(*texts, truncation=True, max_length=longest, return_token_type_ids=True)
    return pack(encoded, labels)


def read(path: Path, layout: Layout) -> Iterator[Row]:
    """Yield texts and label of every line; quotes are text like any other.

    A line without all of its fields, of which QQP has a few, is left out, and that is logged.

    Raises:
        UserError: there is no such file, it is no UTF-8, lacks a column, or has a label that is none.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as problem:
        raise UserError(f"{path}: is not UTF-8 text ({problem})") from problem
    rows = [line.rstrip("\r").split("\t") for line in lines if line.strip()]
    header = list(layout.header) or (rows[0] if rows else [])
    if lacking := [name for name in (*layout.columns, layout.label) if name not in header]:
        raise UserError(f"{path}: has no column {lacking[0]!r} among {', '.join(header)[:200]}")
    texts, label = [header.index(name) for name in layout.columns], header.index(layout.label)
    broken = found = 0
    for number, row in enumerate(rows):
        if not layout.header and number == 0:
            continue
        if len(row) <= max(*texts, label):
            broken += 1
            continue
        found += 1
        yield tuple(row[i] for i in texts), _label(row[label], layout, f"{path}, line {number + 1}")
    if broken:
        log.info("%s: %d lines without all fields left out", path, broken)
    if not found:
        raise UserError(f"{path}: holds no texts")


def _label(text: str, layout: Layout, where: str) -> float:
    if layout.classes:
        if text not in layout.classes:
            raise UserError(f"{where}: label {text!r} must be one of {', '.join(layout.classes)}")
        return layout.classes.index(text)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{where}: label {text!r} must be a number")
    return value


def _from_hub(name: str, layout: Layout) -> list[list[Row]]:
    pretrained.hub_answers()  # before its packages are imported, which look once whether it does
    try:
        from datasets import load_dataset
    except ImportError as problem:
        raise UserError(
            "dataset.download=true: GLUE comes through the package datasets: pip install 'lpslim[glue]'"
        ) from problem
    try:
        parts = load_dataset(HUB, layout.hub_name or name)
    except Exception as problem:  # the hub's clients raise a dozen kinds when they cannot reach it
        reason = str(problem).splitlines()[0][:160] if str(problem) else type(problem).__name__
        raise UserError(f"dataset.name={name}: cannot be fetched from the hub ({reason})") from problem
    columns = layout.hub or layout.columns
    return [
        [(tuple(str(row[column]) for column in columns), row["label"]) for row in parts[part]]
        for part in ("train", layout.hub_dev)
    ]
