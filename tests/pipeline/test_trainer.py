"""A run whose trainer is settled: by what is measured here, or because the compiler is not there."""

import os
import re
import subprocess
import sys
from dataclasses import asdict, replace

import pytest

from lpslim import records, speed, stages
from lpslim.cli import checked
from tests.composing import ROOT, composed
from tests.pipeline.dying import TINY, places

KEYS = re.compile(r"^  (\w+) +([0-9a-f]{16})  (found|to do)", re.MULTILINE)


def test_a_run_that_measures_its_trainer_finds_its_stages_again(run, tmp_path, capsys, monkeypatch):
    planned = run("trainer=auto", "dry_run=true", work=tmp_path)[1]
    assert len(list((tmp_path / "outputs" / "trainer").glob("*.json"))) == 1
    record = records.read(run("trainer=auto", "target_flops=0.5", work=tmp_path)[1])
    monkeypatch.setattr(speed, "_measured", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(stages, "fit", lambda *_, **__: pytest.fail("a stage was computed again"))
    assert run("trainer=auto", "target_flops=0.5", work=tmp_path)[1].stem == record.key
    assert {stage.name: stage.key for stage in planned}["sparsify"] == record.stages["sparsify"]
    said = capsys.readouterr().out
    assert said.count("trainer: ") == 3
    assert said.count("delete it to measure anew") == 2
    settled = record.config["trainer"]
    assert [settled[key] for key in ("compile", "cuda_graphs")] == [False, False]
    assert isinstance(settled["channels_last"], bool)
    given = f"trainer.channels_last={str(settled['channels_last']).lower()}"
    assert run(given, "target_flops=0.5", work=tmp_path)[1].stem == record.key


def test_without_a_compiler_a_run_goes_on_under_the_keys_of_one_that_asks_for_none(tmp_path):
    def planned(*words):
        environment = {
            **os.environ,
            "CXX": "/nonexistent",
            "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "kernels"),
        }
        command = [sys.executable, "run.py", *TINY, *places(tmp_path), "--dry-run", *words]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)

    without, asked = planned(), planned("trainer.compile=true", "trainer.device=cpu")
    assert asked.returncode == 0, asked.stderr
    lines = [line for line in asked.stdout.splitlines() if "torch.compile does not work here" in line]
    assert len(lines) == 1
    assert lines[0].startswith("trainer.compile=true: torch.compile does not work here (")
    assert lines[0].endswith("); goes on without")
    assert "Traceback" not in asked.stdout + asked.stderr
    assert KEYS.findall(asked.stdout) == KEYS.findall(without.stdout) != []


@pytest.mark.parametrize(
    ("override", "settled", "differs"),
    [
        ("trainer=auto", {"channels_last": True, "compile": False}, {}),
        (
            "trainer=auto",
            {"channels_last": False, "compile": False},
            {"trainer.channels_last": [True, False]},
        ),
        ("trainer.compile=true", {"compile": False}, {}),
        ("trainer.compile=true", {}, {"trainer.compile": [False, True]}),
    ],
)
def test_a_record_differs_from_its_file_by_what_was_done_not_by_what_was_asked(override, settled, differs):
    row = "experiment=digits_resnet20/lp"
    file = dict(records.flat(asdict(checked(composed(row)))))
    config = checked(composed(row, override))
    done = replace(config, trainer=replace(config.trainer, **settled, cuda_graphs=False))
    assert records.differences(file, done) == differs
    assert records.differences({**file, "trainer.channels_last": None, "trainer.compile": None}, done) == {}
    assert records.differences({}, done) == {}
