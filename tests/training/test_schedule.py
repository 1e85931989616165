"""Learning rates against their closed forms; configurations made shorter."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpslim.training.schedule import SCHEDULES, SharedSchedule, TrainConfig, learning_rate, scaled

lengths = st.integers(2, 400)
rates = st.floats(1e-4, 1)
warmups = st.floats(0.5, 500)


@given(lengths, rates, warmups, st.sampled_from(SCHEDULES))
def test_the_warm_up_is_linear_to_the_full_rate_in_a_third_of_the_epochs(epochs, lr, warmup, schedule):
    config = TrainConfig(epochs=epochs, lr=lr, schedule=schedule, warmup_epochs=warmup)
    for share in (0, 0.3, 0.5, 1):
        assert learning_rate(config, share * min(warmup, epochs / 3)) == pytest.approx(share * lr)
    assert learning_rate(replace(config, warmup_epochs=0), 0) == lr


@given(lengths, rates, warmups, st.floats(0, 1))
def test_cosine_is_the_closed_form_after_the_warm_up(epochs, lr, warmup, share):
    config = TrainConfig(epochs=epochs, lr=lr, schedule="cosine", warmup_epochs=warmup)
    start = min(warmup, epochs / 3)
    expected = lr * math.cos(math.pi / 2 * share) ** 2  # 1 + cos x = 2 cos^2(x/2)
    assert learning_rate(config, start + share * (epochs - start)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("settings", "epochs", "expected"),
    [
        ({"schedule": "step"}, (0, 49.9, 50, 74.9, 75, 99.9), (1, 1, 0.1, 0.1, 0.01, 0.01)),
        ({"schedule": "step", "milestones": [0.5], "warmup_epochs": 25}, (49.9, 50), (1, 0.1)),
        ({"schedule": "step", "milestones": []}, (99.9,), (1,)),
        ({"schedule": "linear", "warmup_epochs": 20}, (10, 20, 40, 60, 100), (0.5, 1, 0.75, 0.5, 0)),
        ({"schedule": "constant"}, (0, 33.3, 99.9), (1, 1, 1)),
    ],
)
def test_the_other_schedules_have_their_landmarks(settings, epochs, expected):
    config = TrainConfig(epochs=100, lr=1.0, **settings)
    assert [learning_rate(config, e) for e in epochs] == pytest.approx(expected)


@given(lengths, lengths, warmups, st.sampled_from(SCHEDULES), st.floats(0, 1))
def test_stages_on_one_schedule_have_its_learning_rates(first, second, warmup, schedule, share):
    settings = {"lr": 0.1, "schedule": schedule, "warmup_epochs": warmup}
    whole = TrainConfig(epochs=first + second, **settings)
    one, two = (
        SharedSchedule(epochs=first, after=second, **settings),
        SharedSchedule(epochs=second, before=first, **settings),
    )
    assert learning_rate(one, share * first) == learning_rate(whole, share * first)
    assert learning_rate(two, share * second) == learning_rate(whole, first + share * second)


def test_scaling_takes_the_warm_up_along_and_keeps_an_epoch_where_there_was_one():
    config = TrainConfig(epochs=300, lr=0.05, warmup_epochs=5, schedule="step", milestones=[0.3, 0.6])
    assert scaled(config, 0.1) == replace(config, epochs=30, warmup_epochs=0.5)
    for epochs, factor, expected in ((3, 0.1, 1), (30, 0.05, 2), (3, 2.5, 8), (3, 1, 3), (0, 9, 0)):
        assert scaled(TrainConfig(epochs=epochs), factor).epochs == expected
