"""The published tables as rows: what the paper prints, and the experiment that would reproduce it."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lpslim.base.errors import UserError

FOLDER = Path(__file__).parent / "paper"
TITLES = {
    "vgg16_cifar10": "VGG-16 on CIFAR-10",
    "resnet_cifar10": "ResNet-56 and ResNet-110 on CIFAR-10",
    "resnet50_imagenet": "ResNet-50 on ImageNet",
    "bert_glue": "BERT-base on GLUE",
}
PAIRS = {  # data set and model -> table and depth
    ("cifar10", "vgg16"): ("vgg16_cifar10", None),
    ("cifar10", "resnet56"): ("resnet_cifar10", "56"),
    ("cifar10", "resnet110"): ("resnet_cifar10", "110"),
    ("imagenet", "resnet50"): ("resnet50_imagenet", None),
}
ENCODERS = ("minilm", "tiny")  # that stand in for BERT-base where it cannot be had
OURS = "ours"
DENSE = ("VGG-16", "BERT-base")  # methods that are no method: the network before pruning
PLACE = ("depth", "task", "block", "method", "schedule", "finetune_epochs", "params_millions")
AVERAGE = "average"
METRICS = {"acc": "accuracy", "f1": "F1", "mcc": "Matthews", "spearman": "Spearman"}


@dataclass(frozen=True)
class Row:
    """One row of a published table, everything as printed there (``NA`` where the paper gives none).

    place: which row it is (``method``, and ``block``, ``depth``, ``task``, ... where the table has them).
    cells: column -> figure, such as ``top1`` or ``flops_drop`` in percent.
    experiment: the name of the experiment that reproduces it; empty for another paper's method.
    """

    table: str
    place: dict[str, str]
    cells: dict[str, str]
    experiment: str
    note: str

    @property
    def method(self) -> str:
        """The method's name as printed; ``ours`` is the paper's own."""
        return self.place["method"]

    @property
    def is_dense(self) -> bool:
        """Whether this is the network before pruning."""
        return self.method in DENSE

    @property
    def scope(self) -> tuple[str | None, str | None]:
        """The network depth or the task, where the table has several."""
        return self.place.get("depth"), self.place.get("task")

    @property
    def is_average(self) -> bool:
        """Whether this is the paper's average over all tasks."""
        return self.place.get("task") == AVERAGE


def read(table: str) -> list[Row]:
    """Return the rows of one published table, in the paper's order; GLUE gives a row per method and task.

    Raises:
        UserError: there is no such table.
    """
    if table not in TITLES:
        raise UserError(f"table={table}: must be one of {', '.join(TITLES)}")
    with open(FOLDER / f"table_{table}.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    if table == "bert_glue":
        lines = _by_task(lines)
    return [_row(table, line) for line in lines]


def _row(table: str, line: dict[str, str]) -> Row:
    place = {key: value for key, value in line.items() if key in PLACE}
    cells = {key: value for key, value in line.items() if key not in (*PLACE, "experiment", "note")}
    return Row(table, place, cells, line["experiment"], line["note"])


def _by_task(lines: list[dict[str, str]]) -> list[dict[str, str]]:
    """Turn one line per method with a column per task into one line per task and method."""
    columns = [key for key in lines[0] if key not in ("method", "params_millions", "experiment", "note")]
    unfolded = []
    for column in columns:
        task, _, metric = column.partition("_")
        for line in lines:
            one = {key: line[key] for key in ("method", "params_millions", "note")}
            one["task"] = f"{task} ({METRICS[metric]})" if metric else AVERAGE
            one["score"] = line[column]
            one["experiment"] = line["experiment"].format(task=task) if metric else ""
            unfolded.append(one)
    return unfolded


def dense_of(row: Row, rows: Sequence[Row]) -> Row | None:
    """Return the published dense network that ``row`` was pruned from, None if the table has none."""
    return next((each for each in rows if each.is_dense and each.scope == row.scope), None)


def same_roof(block: str) -> str:
    """Return the published table beside which a block of measured rows belongs, empty if none.

    block: ``"<data set>, <model>"``, and maybe a metric in brackets.
    """
    name, _, model = block.partition(" (")[0].partition(", ")
    if model in ENCODERS:
        return "bert_glue"
    return PAIRS.get((name, model), ("", None))[0]


def number(cell: str) -> float | None:
    """Return a printed figure as a number, None for NA."""
    return None if cell == "NA" else float(cell)
