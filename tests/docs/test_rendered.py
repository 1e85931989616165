"""The committed tables, and the block in README, are those that the committed records give."""

from pathlib import Path

import pytest

from lpslim.experiment import records
from reproduce import tables

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results"


@pytest.fixture(scope="module")
def rendered():
    figures = [path.stem for path in (RESULTS / "figures").glob("*.png")]
    return tables.documents(records.read_all(RESULTS), "last", figures=figures)


def test_the_committed_tables_are_those_of_the_records(rendered):
    pages, _, _ = rendered
    committed = {f"tables/{path.name}" for path in (RESULTS / "tables").iterdir()}
    assert committed == {name for name in pages if name != "README.md"}
    for name, content in pages.items():
        assert (RESULTS / name).read_text(encoding="utf-8") == content, f"{name}: make tables"


def test_the_readme_is_that_of_the_records(rendered):
    _, block, _ = rendered
    content = (ROOT / "README.md").read_text(encoding="utf-8")
    assert content.partition(tables.BEGIN)[2].partition(tables.END)[0] == f"\n{block}", "make tables"
