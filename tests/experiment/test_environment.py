"""The environment that a record states: threads and the source revision."""

import subprocess

import torch

from lpslim.experiment import environment as module
from lpslim.experiment.environment import environment
from tests.composing import ROOT


def test_the_environment_states_the_source():
    def git(*words):
        return subprocess.check_output(["git", *words], cwd=ROOT, text=True).strip()

    stated = environment("cpu")
    assert stated["threads"] == torch.get_num_threads()
    assert stated["commit"] == git("rev-parse", "HEAD")
    assert stated["dirty"] == bool(git("status", "--porcelain", "--", "src", "conf", "run.py"))


def test_the_environment_does_not_state_a_repository_that_the_package_is_installed_into(
    monkeypatch, tmp_path
):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "other.py").touch()
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    monkeypatch.setattr(module, "__file__", str(tmp_path / "runner.py"))
    stated = environment("cpu")
    assert (stated["commit"], stated["dirty"]) == (None, False)
