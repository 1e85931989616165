"""Published tables as rows: what the paper prints, and which experiment reproduces it."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "paper"
TITLES = {
    "vgg16_cifar10": "VGG-16 on CIFAR-10",
    "resnet_cifar10": "ResNet-56/110 on CIFAR-10",
    "resnet50_imagenet": "ResNet-50 on ImageNet",
    "bert_glue": "BERT-base on GLUE",
}
PAIRS = {  # data set and model -> table and depth
    ("cifar10", "vgg16"): ("vgg16_cifar10", None),
    ("cifar10", "resnet56"): ("resnet_cifar10", "56"),
    ("cifar10", "resnet110"): ("resnet_cifar10", "110"),
    ("imagenet", "resnet50"): ("resnet50_imagenet", None),
}
OURS = "ours"  # the paper's own method
DENSE = ("VGG-16", "BERT-base")  # networks before pruning
PLACE = ("depth", "task", "block", "method", "schedule", "finetune_epochs", "params_millions")
ADDED = ("experiment", "note")  # columns that are not the paper's


@dataclass(frozen=True)
class Row:
    """One row of a published table, its figures as printed (``NA`` where the paper gives none).

    method: as printed; OURS is the paper's own. is_dense: this is the network before pruning.
    experiment: reproduces it; empty for another paper's method and for averages.
    place: which row it is (``block``, ``task``, ...). cells: column -> figure, such as ``flops_drop``
    in percent. column: that of the accuracy or score. accuracy: its figure, None for NA.
    """

    table: str
    method: str
    is_dense: bool
    experiment: str
    note: str
    place: dict[str, str]
    cells: dict[str, str]
    column: str
    accuracy: float | None


def read(table: str) -> list[Row]:
    """Return the rows of one published table, in the paper's order; GLUE gives a row per method and task."""
    with open(FOLDER / f"table_{table}.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    return [_row(table, line) for line in (_by_task(lines) if table == "bert_glue" else lines)]


def _row(table: str, line: dict[str, str]) -> Row:
    place = {key: value for key, value in line.items() if key in PLACE}
    cells = {key: value for key, value in line.items() if key not in (*PLACE, *ADDED)}
    column = next(name for name in ("top1", "score") if name in cells)
    names = line["method"], line["method"] in DENSE, line["experiment"], line["note"]
    return Row(table, *names, place, cells, column, number(cells[column]))


def _by_task(lines: list[dict[str, str]]) -> list[dict[str, str]]:
    """Turn one line per method with a column per task into one line per task and method."""
    unfolded = []
    for column in (key for key in lines[0] if key not in (*PLACE, *ADDED)):
        task, _, metric = column.partition("_")
        for line in lines:
            one = {key: value for key, value in line.items() if key in (*PLACE, *ADDED)}
            one |= {"task": f"{task} ({metric})" if metric else "average", "score": line[column]}
            unfolded.append(one | {"experiment": line["experiment"].format(task=task) if metric else ""})
    return unfolded


def rows_of(pair: tuple[str, str]) -> list[Row]:
    """Return what is published of pruning a model on a data set, if anything is."""
    table, depth = PAIRS.get(pair, ("", None))
    rows = read(table) if table else []
    return [row for row in rows if row.place.get("depth") == depth and not row.is_dense]


def dense_of(row: Row, rows: Sequence[Row]) -> Row | None:
    """Return the published dense network that ``row`` was pruned from, None if the table has none."""
    same = (other for other in rows if all(other.place.get(k) == row.place.get(k) for k in ("depth", "task")))
    return next((other for other in same if other.is_dense), None)


def number(cell: str) -> float | None:
    """Return a printed figure as a number, None for NA."""
    return None if cell == "NA" else float(cell)
