"""Drops by task: each network's own, beside the published ones."""

import matplotlib.style
import pytest

from reproduce import compare, figures, published, tables
from tests.reproduce import synthetic

RTE = {"data": {"name": "rte", "fingerprint": "d" * 64}, "model.name": "mpnet", "dense": 70.0}
NAMES = ["BERT-base, published", "mpnet, Lp p=5, M=1", "mpnet, no ADMM"]


@pytest.fixture(scope="module")
def shown():
    """Two methods on one task, another budget of the paper's, and a data set that is no task."""
    runs = synthetic.seeds("glue/lp", [69.0, 68.0, 67.0], **RTE)
    runs += synthetic.seeds("glue/no_admm", [66.0, 64.0], **RTE, **synthetic.NO_ADMM)
    runs += [synthetic.record("glue/lost", final=10.0, target_flops=0.9, **RTE), synthetic.record()]
    return runs


def test_a_drop_is_from_the_own_dense_score_at_the_budget_of_most_methods(shown):
    found = compare.drops(shown, "last")
    assert list(found) == NAMES
    assert [found[name]["rte (acc)"].mean for name in NAMES] == pytest.approx([70.0 - 74.2, 2, 5])
    rows = published.read("bert_glue")
    tasks = [row.place["task"] for row in rows if row.method == published.OURS and row.experiment]
    assert list(found[NAMES[0]]) == [line["Task"] for line in compare.drop_lines(found)] == tasks
    assert compare.drops(shown[-1:], "last") == {}


def test_page_and_figure_show_them(shown):
    with matplotlib.style.context(figures.STYLE):
        (axes,) = figures.figures(shown, "last")[compare.FIGURE].axes
    assert list(axes.get_legend_handles_labels()[1]) == NAMES
    pages, _, _ = tables.documents(shown, "last", figures=[compare.FIGURE])
    assert "| rte (acc)       | -4.20                  | 2.00 ± 1.00" in pages["README.md"]
    assert "(figures/drops_glue.png)" in pages["README.md"]
    assert pages["tables/drops.csv"].startswith("Task,")
