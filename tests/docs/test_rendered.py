"""The committed tables, and the block in README, are those that the committed records give."""

from __future__ import annotations

import pytest

from lpslim.experiment import records
from reproduce import tables
from tests.composing import ROOT

RESULTS = ROOT / "results"
FILES, _ = tables.documents(records.read_all(RESULTS), "last")


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_committed_table_is_that_of_the_records(name):
    assert (RESULTS / "tables" / name).read_text(encoding="utf-8") == FILES[name], "make tables"


def test_no_other_table_is_committed():
    assert sorted(path.name for path in (RESULTS / "tables").iterdir()) == sorted(FILES)


def test_the_readme_is_that_of_the_records(tmp_path):
    readme = tmp_path / "README.md"
    content = (ROOT / "README.md").read_text(encoding="utf-8")
    readme.write_text(content, encoding="utf-8")
    copy = tmp_path / "results"
    copy.mkdir()
    (copy / "records").symlink_to(RESULTS / "records")
    tables.render(copy, "last", readme)
    assert readme.read_text(encoding="utf-8") == content, "make tables"
