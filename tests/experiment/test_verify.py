"""Verification: a sound store passes, and everything that is checked can fail."""

import json
import shutil

import pytest

from lpslim.experiment.verify import main, verify


@pytest.fixture(scope="module")
def sound(run, tmp_path_factory):
    done = run("regularizer=none", "criterion.layer_budget_from=fpgm", work=tmp_path_factory.mktemp("sound"))
    return done.path.parents[3]


@pytest.fixture
def store(sound, tmp_path):
    shutil.copytree(sound, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_a_sound_store_has_no_problem_and_stages_that_are_gone_are_counted(store, capsys):
    assert main(["--results", str(store / "results"), "--work-dir", str(store / "outputs")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 records, 5 stages, 0 absent stages, 0 problems"
    shutil.rmtree(store / "outputs")
    expected = "1 records, 0 stages, 5 absent stages, 0 problems"
    assert verify(store / "results", store / "outputs") == ([], expected)


@pytest.mark.parametrize("harm", ["decodes", "place", "bytes", "network"])
def test_every_problem_is_found(store, harm):
    (path,) = (store / "results").rglob("*.json")
    (network,) = (store / "outputs" / "stages" / "prune").rglob("weights.safetensors")
    if harm == "place":
        path = path.rename(path.with_name("0" * 16 + ".json"))
    elif harm == "bytes":
        network.write_bytes(network.read_bytes() + b"x")
    else:
        wrong = {"decodes": {"seed": "one"}, "network": {"weights": {"prune": "0" * 64}}}[harm]
        path.write_text(json.dumps({**json.loads(path.read_text()), **wrong}))
    (problem,), said = verify(store / "results", store / "outputs")
    assert said.endswith(" 1 problems")
    assert problem.startswith(str(network.parent if harm == "bytes" else path))
    assert main(["--results", str(store / "results"), "--work-dir", str(store / "outputs")]) == 1


def test_a_folder_that_is_not_there_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--results", "/nowhere"])
    assert "--results /nowhere: no such folder" in capsys.readouterr().err
