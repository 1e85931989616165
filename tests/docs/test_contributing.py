"""The penalty that CONTRIBUTING shows, run as a plug-in of an installed package."""

import re
import shlex

import pytest

from lpslim import cli
from lpslim.experiment import records
from lpslim.experiment.runner import execute
from tests.composing import ROOT, composed, configured
from tests.experiment.dying import places

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    (text,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return text


@pytest.fixture
def _installed(tmp_path, monkeypatch):
    """Install the example as a package, in the form that pip leaves on Python's path."""
    site = tmp_path / "site"
    info = site / "log_sum-1.dist-info"
    info.mkdir(parents=True)
    (site / "log_sum.py").write_text(block("python"))
    group = re.search(r'entry-points\."([\w.]+)"', block("toml"))[1]
    entry = block("toml").splitlines()[1].replace('"', "")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: log_sum\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{entry}\n")
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(cli, "check", lambda *_: None)  # it knows the names of when it was imported


@pytest.mark.usefixtures("_installed")
def test_the_example_runs_and_its_yaml_is_the_same_run(tmp_path):
    (command,) = re.findall(r"`python run\.py (debug=tiny [^`]+)`", PAGE)
    words = [*shlex.split(command), "model=vgg_small", "trainer.threads=1", *places(tmp_path)]
    record = records.read(execute(configured(*words), None))
    assert record.method == "log-sum, epsilon=0.05"
    assert 0 < record.convergence[0]["sparsity"] < 1
    yaml = tmp_path / "conf" / re.search(r"# conf/(\S+)", block("yaml"))[1]
    yaml.parent.mkdir(parents=True)
    yaml.write_text(block("yaml"))
    named = ("debug=tiny", "regularizer=log_sum", f"hydra.searchpath=['file://{tmp_path}/conf']")
    assert composed(*named) == composed(*shlex.split(command))
