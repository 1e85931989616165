"""A step is measured as the loop does it, and nothing else notices."""

import os

import pytest
import torch

from lpslim import lookup, speed
from lpslim.cli import checked
from lpslim.engine import Training
from tests.composing import composed


@pytest.fixture
def of(tmp_path, monkeypatch):
    """Measure a tiny network with some overrides, without what was measured before."""
    monkeypatch.setattr(speed, "_known", {})
    monkeypatch.setattr(speed, "LEAST_SECONDS", 0.0)

    def go(*overrides):
        config = checked(composed("model=vgg_small", "dataset=digits", "trainer.threads=1", *overrides))
        data = lookup.find("data", config.dataset.source).load(config.dataset, tmp_path)
        return speed.measured(config, data)

    return go


def test_measuring_leaves_the_random_state_alone(of):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    assert of().per_second > 0
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("overrides", "shape", "dtype"),
    [
        (("baseline.batch_size=16",), (16, 1, 8, 8), torch.int64),
        (("dataset=digits32", "baseline.batch_size=4096"), (170, 3, 32, 32), torch.int64),
        (("model=bert_tiny", "dataset=grammar", "target_params=0.3"), (32, 3, 10), torch.int64),
    ],
)
def test_it_is_the_loops_step_on_a_batch_of_the_baselines_size(overrides, shape, dtype, of, monkeypatch):
    steps = []
    step = Training.step

    def spy(self, inputs, labels):
        steps.append((tuple(inputs.shape), labels.dtype, self.model.training))
        step(self, inputs, labels)

    monkeypatch.setattr(Training, "step", spy)
    of(*overrides)
    assert len(steps) == speed.WARM_STEPS + speed.ROUNDS
    assert set(steps) == {(shape, dtype, True)}


def test_each_way_to_train_is_measured_once_in_a_process(of, monkeypatch):
    first, other = of(), of("trainer.channels_last=false")
    monkeypatch.setattr(speed, "_measured", lambda *_: pytest.fail("measured again"))
    assert (of(), of("trainer.channels_last=false")) == (first, other)


def test_kernels_of_former_times_are_put_aside_and_come_back(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with speed.empty_cache():
        inside = os.environ["TORCHINDUCTOR_CACHE_DIR"]
        assert os.listdir(inside) == []
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path)
    assert not os.path.exists(inside)


def test_the_reason_is_one_line_of_what_lies_behind():
    problem = RuntimeError("backend raised:\nlong story")
    assert speed.reason(problem) == "backend raised:"
    problem.inner_exception = ValueError("\n  No compiler found\nTraceback ...")
    assert speed.reason(problem) == "No compiler found"
    problem.inner_exception = ValueError()
    assert speed.reason(problem) == "ValueError"
