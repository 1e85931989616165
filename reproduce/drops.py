"""Drops by task: the points that pruning costs an encoder on each task of GLUE, published and measured."""

from collections.abc import Sequence

from lpslim.experiment.records import Record
from lpslim.experiment.statistics import Summary, summary
from reproduce import published
from reproduce.aggregate import by_pair
from reproduce.compare import comparable, is_ours
from reproduce.markup import Line
from reproduce.names import named

TABLE, FIGURE, PUBLISHED = "bert_glue", "drops_glue", "BERT-base, published"
Drops = dict[str, dict[str, Summary]]  # series -> task, in the paper's order -> dense minus pruned score


def drops(shown: Sequence[Record], protocol: str) -> Drops:
    """Return the published drops, and those of every encoder that the paper's method has pruned.

    Each is from the own dense score, which alone compares between networks. With it come the other methods
    of the same network and budget, of the budget with the most methods. Empty if nothing was measured.
    """
    rows = published.read(TABLE)
    own = {row.place["task"]: row for row in rows if row.method == published.OURS and row.experiment}
    found: Drops = {}
    for (data, model), groups in by_pair(shown).items():
        task = next((task for task in own if task.partition(" ")[0] == data), None)
        ended = [group for group in groups if task and group.runs]
        together = max(comparable(ended), key=len, default=[])
        for name, group in named(together) if any(is_ours(group.first) for group in together) else ():
            found.setdefault(f"{model}, {name}", {})[str(task)] = group.drop(protocol)
    if not found:
        return {}
    pairs = ((task, row.accuracy, published.dense_of(row, rows)) for task, row in own.items())
    ours = {task: summary([dense.accuracy - after]) for task, after, dense in pairs
            if after is not None and dense and dense.accuracy is not None}  # fmt: skip
    ordered = {name: {task: by[task] for task in ours if task in by} for name, by in sorted(found.items())}
    return {PUBLISHED: ours, **ordered}


def lines(found: Drops) -> list[Line]:
    """Return a line per task, with a column per series."""
    tasks = found.get(PUBLISHED, ())
    return [{"Task": task, **{name: by.get(task) for name, by in found.items()}} for task in tasks]
