"""Plug-ins of every kind in an installed package: they run end to end, and no file of lpslim knows them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lpslim import cli
from lpslim.experiment import records
from lpslim.experiment.runner import execute
from tests.composing import ROOT, configured
from tests.docs.test_contributing import block
from tests.experiment.dying import places

TOY = Path(__file__).parent / "toy"
NETWORK = ["model=toy_plain", "dataset=toy_stripes"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Return a folder with the package, as pip installs it."""
    folder = tmp_path_factory.mktemp("plugins")
    shutil.copytree(TOY, folder / "source")
    (folder / "source" / "toy_lpslim" / "log_sum.py").write_text(block("python"))  # the page's penalty
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--target", folder / "site", folder / "source"], check=True)
    return folder / "site"


def run(site, work, *words):
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "run.py", "--config-dir", str(TOY / "conf"), *words, *places(work)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def made(installed, tmp_path_factory):
    """Return the folder of two runs, and their records by regulariser."""
    work = tmp_path_factory.mktemp("work")
    words = ["regularizer=toy_log_sum,toy_lasso", "criterion=toy_snip", "ratio=0.5"]
    done = run(installed, work, "-m", *NETWORK, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    measured = {record.config["regularizer"]["name"]: record for record in records.read_all(work / "results")}
    return work, measured


def test_plugins_of_every_kind_run_end_to_end(made):
    _, measured = made
    assert set(measured) == {"admm", "toy_lasso"}
    for record in measured.values():
        assert record.data.metric == "balanced accuracy"
        assert record.data.name == "toy_stripes"
        assert record.accuracy["baseline"]["last"] > 90  # the network learns, by a metric of its own
        assert all(kept < size for kept, size in record.channels.values())
    assert len({record.stages["baseline"] for record in measured.values()}) == 1
    assert measured["admm"].method.startswith("log-sum, epsilon=0.05, toy_snip (uniform)")
    assert measured["admm"].convergence
    assert not measured["toy_lasso"].convergence


def test_its_options_and_its_source_are_in_the_keys_of_its_stage_and_those_after(
    made, installed, tmp_path, monkeypatch, capsys
):
    site, same = tmp_path / "site", made[1]["admm"].stages
    shutil.copytree(installed, site)
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(cli, "check", lambda *_: None)  # it knows the names of when it was imported
    words = [f"hydra.searchpath=['file://{TOY}/conf']", *NETWORK, "regularizer=toy_log_sum",
             "criterion=toy_snip", "ratio=0.5", "dry_run=true", *places(tmp_path)]  # fmt: skip

    def keys(*more):
        execute(configured(*words, *more), None)
        rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
        return {row[0]: row[1] for row in rows if len(row[1]) == 16}

    assert keys() == same
    other = keys("regularizer.penalty_options.epsilon=0.2")
    with open(site / "toy_lpslim" / "log_sum.py", "a") as source:
        source.write("\n# changed\n")
    for changed in (other, keys()):
        assert {stage for stage in same if changed[stage] == same[stage]} == {"baseline"}
