"""The committed tables, and the blocks in README and findings, are those that the committed records give."""

import re

import pytest

from lpslim.experiment import records
from reproduce import figures, tables
from tests.composing import ROOT

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


def test_the_committed_figures_are_those_of_the_records():
    names = figures.figures(records.read_all(RESULTS), "last").keys()
    assert {path.name for path in (RESULTS / "figures").iterdir()} == {
        f"{name}.{form}" for name in names for form in figures.FORMATS
    }, "make plots; those of no record are to be removed"
    shown = re.findall(r"!\[(.*)\]", (RESULTS / "README.md").read_text(encoding="utf-8"))
    assert sorted(shown) == sorted(names)


@pytest.mark.parametrize("name", ["README.md", "docs/findings.md"])
def test_a_page_has_the_block_of_the_records_and_no_image_that_is_missing(rendered, name):
    _, blocks, _ = rendered
    content = (ROOT / name).read_text(encoding="utf-8")
    assert content.partition(tables.BEGIN)[2].partition(tables.END)[0] == f"\n{blocks[name]}", "make tables"
    images = re.findall(r"!\[.*\]\((.*)\)", content)
    assert all((ROOT / name).parent.joinpath(image).exists() for image in images)


def test_findings_stay_short():
    words = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8").split()
    assert sum(any(map(str.isalnum, word)) for word in words) <= 900
