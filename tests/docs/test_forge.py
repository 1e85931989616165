"""Files that the forge reads: they parse, and name what is there."""

import re
import tomllib

import pytest
import yaml

import lpslim
from tests.composing import ROOT

FILES = [*ROOT.glob(".github/**/*.yml"), ROOT / ".pre-commit-config.yaml"]
TEXTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in FILES}
FORMS = [name for name in TEXTS if "ISSUE_TEMPLATE" in name and "config" not in name]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("name", TEXTS)
def test_a_file_parses_and_its_make_targets_exist(name):
    assert yaml.safe_load(TEXTS[name])
    targets = set(re.findall(r"\bmake ([a-z]+)", TEXTS[name]))
    assert targets <= set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_continuous_integration_runs_the_checks_on_every_python_that_is_promised():
    (job,) = yaml.safe_load(TEXTS[".github/workflows/ci.yml"])["jobs"].values()
    commands = [step["run"].split()[:2] for step in job["steps"] if "run" in step]
    assert commands == [["make", "check"], ["make", "test"]]
    assert f">={job['strategy']['matrix']['python'][0]}" == PROJECT["requires-python"]


@pytest.mark.parametrize("name", FORMS)
def test_a_form_has_fields_of_their_own_names(name):
    form = yaml.safe_load(TEXTS[name])
    assert {"name", "description", "body"} <= form.keys()
    names = [field["id"] for field in form["body"]]
    assert len(names) == len(set(names))
    assert "command" in names


def test_faults_are_reported_with_the_command_the_record_and_make_verify():
    for name in ("fault", "number"):
        text = TEXTS[f".github/ISSUE_TEMPLATE/{name}.yml"]
        assert {"command", "verify"} < {field["id"] for field in yaml.safe_load(text)["body"]}
        assert "results/records/<experiment>/<key>.json" in text
        assert "`make verify`" in text


def test_the_version_has_its_changes():
    heads = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heads[0].strip(",") == lpslim.__version__ == PROJECT["version"]
