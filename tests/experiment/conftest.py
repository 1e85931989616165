import pytest

from lpslim.cli import checked
from lpslim.experiment.runner import execute
from tests.composing import composed


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """A folder whose stages the tests of this session share."""
    return tmp_path_factory.mktemp("pipeline")


@pytest.fixture
def run(shared):
    """Run the tiny pipeline with some overrides; returns (config, record path; of a dry run the stages)."""

    def go(*overrides, work=None):
        work = work or shared
        places = (f"work_dir={work}/outputs", f"results_dir={work}/results")
        # the last profile word wins, so a test's own overrides come last
        config = checked(composed("model=vgg_small", "debug=tiny", "trainer.threads=1", *places, *overrides))
        outcome = execute(config, {})
        return config, outcome.record or outcome.stages

    return go
