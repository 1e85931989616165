"""Plug-ins of every kind in an installed package: they run end to end, and no file of lpslim knows them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lpslim.experiment import records
from tests.composing import ROOT

TOY = Path(__file__).parent / "toy"
NETWORK = ["model=toy_plain", "dataset=toy_stripes"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Return a folder with the package, as pip installs it."""
    folder = tmp_path_factory.mktemp("plugins")
    shutil.copytree(TOY, folder / "source")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--target", folder / "site", folder / "source"], check=True)
    return folder / "site"


def run(site, work, *words):
    environment = {**os.environ, "PYTHONPATH": str(site)}
    places = [f"work_dir={work}/outputs", f"results_dir={work}/results"]
    command = [sys.executable, "run.py", "--config-dir", str(TOY / "conf"), *words, *places]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def stages(done):
    """Return stage -> key as a dry run prints them."""
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("  ")]
    return {row[0]: row[1] for row in rows if len(row[1]) == 16}


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


def test_its_options_and_its_source_are_in_the_keys_of_its_stage_and_those_after(made, installed, tmp_path):
    work, measured = made
    words = [*NETWORK, "regularizer=toy_log_sum", "criterion=toy_snip", "ratio=0.5", "--dry-run"]
    same = measured["admm"].stages
    assert stages(run(installed, work, *words)) == same
    other = stages(run(installed, work, *words, "regularizer.penalty_options.epsilon=0.2"))
    changed = tmp_path / "site"
    shutil.copytree(installed, changed)
    with open(changed / "toy_lpslim" / "log_sum.py", "a") as source:
        source.write("\n# changed\n")
    edited = stages(run(changed, work, *words))
    for keys in (other, edited):
        assert {stage for stage in same if keys[stage] == same[stage]} == {"baseline"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["regularizer=toy_log_sum", "+regularizer.penalty_options.eps=1"],
            "regularizer.penalty_options.eps=1: ",
        ),
        (
            ["regularizer=toy_lasso", "~regularizer.options.strength"],
            "regularizer.options.strength: must be given",
        ),
    ],
)
def test_what_a_plugin_does_not_know_is_refused(words, said, installed, tmp_path):
    done = run(installed, tmp_path, *NETWORK, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {said}")


def test_a_plugin_that_is_not_installed_is_no_choice(tmp_path):
    done = run(tmp_path, tmp_path, *NETWORK)
    assert done.returncode == 2
    assert "error: model.family=toy_plain: must be one of bert, " in done.stderr
