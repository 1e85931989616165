"""The penalty that CONTRIBUTING shows, run from the command line as a plug-in of an installed package."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    (text,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return text


@pytest.fixture
def installed(tmp_path):
    """Install the example as a package, in the form that pip leaves on Python's path; return that folder."""
    site = tmp_path / "site"
    info = site / "log_sum-1.dist-info"
    info.mkdir(parents=True)
    (site / "log_sum.py").write_text(block("python"))
    group = re.search(r'entry-points\."([\w.]+)"', block("toml"))[1]
    entry = block("toml").splitlines()[1].replace('"', "")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: log_sum\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{entry}\n")
    return site


def run(arguments: list[str], site, tmp_path) -> subprocess.CompletedProcess:
    folders = [f"work_dir={tmp_path}/work", f"results_dir={tmp_path}/results"]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "run.py", *arguments, *folders]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_the_example_runs_and_its_yaml_is_the_same_run(installed, tmp_path):
    (command,) = re.findall(r"`python run\.py (debug=tiny [^`]+)`", PAGE)
    first = run([*shlex.split(command), "model=vgg_small"], installed, tmp_path)
    assert first.returncode == 0, first.stderr
    (path,) = (tmp_path / "results").rglob("*.json")
    record = json.loads(path.read_text())
    assert record["method"] == "log-sum, epsilon=0.05"
    assert 0 < record["convergence"][0]["sparsity"] < 1
    groups = tmp_path / "conf"
    yaml = groups / re.search(r"# conf/(\S+)", block("yaml"))[1]
    yaml.parent.mkdir(parents=True)
    yaml.write_text(block("yaml"))
    words = ["debug=tiny", "model=vgg_small", "regularizer=log_sum", "--config-dir", str(groups)]
    again = run(words, installed, tmp_path)
    assert again.returncode == 0, again.stderr
    assert [path] == list((tmp_path / "results").rglob("*.json"))


def test_a_penalty_that_nobody_installed_is_refused(tmp_path):
    done = run(["debug=tiny", "regularizer.penalty=log_sum"], tmp_path, tmp_path)
    assert done.returncode == 2
    assert "regularizer.penalty=log_sum" in done.stderr
    assert "lp" in done.stderr
