"""What a record says of the code that made it."""

import subprocess

import pytest

from lpslim.experiment import records
from tests.composing import ROOT


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A repository with the sources' layout; records take it for the one they lie in."""
    package = tmp_path / "src" / "lpslim"
    package.mkdir(parents=True)
    for file in (package / "records.py", tmp_path / "run.py", tmp_path / "README.md"):
        file.write_text("one\n")

    def git(*words):
        own = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *own, *words], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    git("add", "-A")
    git("commit", "-m", "one")
    monkeypatch.setattr(records, "__file__", str(package / "records.py"))
    return tmp_path


def test_changed_sources_are_dirty_and_nothing_else_is(clone):
    assert not records.environment("cpu")["dirty"]
    (clone / "README.md").write_text("two\n")
    assert not records.environment("cpu")["dirty"]
    for file in ("run.py", "src/lpslim/records.py", "src/lpslim/new.py"):
        (clone / file).write_text("two\n")
        assert records.environment("cpu")["dirty"]
        subprocess.run(["git", "clean", "-fdq"], cwd=clone, check=True)
        subprocess.run(["git", "checkout", "-q", "."], cwd=clone, check=True)


def test_the_sources_are_found_from_the_package():
    listed = records._git("ls-files", "--", *records.SOURCES)
    assert listed is None or "run.py" in listed
    assert all((ROOT / name.removeprefix(":/")).exists() for name in records.SOURCES)
