from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from lpslim.experiment import records
from lpslim.experiment.config import Config
from lpslim.experiment.records import Record
from lpslim.experiment.runner import execute
from tests.composing import configured
from tests.experiment.dying import TINY, places


@dataclass
class Done:
    """A run that has ended."""

    config: Config
    path: Path
    record: Record

    def folder(self, stage: str) -> Path:
        return Path(self.config.work_dir) / "stages" / stage / self.record.stages[stage]

    def weights(self, stage: str = "finetune") -> dict[str, Tensor]:
        return load_file(self.folder(stage) / "weights.safetensors")


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """Do the tiny run with some overrides, in a folder that all tests share or another."""
    shared = tmp_path_factory.mktemp("pipeline")

    def go(*words: str, work: Path | None = None, file: Config | None = None) -> Done:
        config = configured(*TINY, *places(work or shared), *words)
        path = execute(config, file)
        assert path
        return Done(config, path, records.read(path))

    return go
