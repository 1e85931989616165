"""Learning rates against their closed forms, and recipes made shorter."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lpslim.training.schedule import SCHEDULES, Recipe, learning_rate, scaled

lengths = st.integers(2, 400)
rates = st.floats(1e-4, 1)


class TestWarmUp:
    @pytest.mark.parametrize("schedule", SCHEDULES)
    def test_rises_in_a_straight_line_from_zero(self, schedule):
        recipe = Recipe(epochs=30, lr=0.2, schedule=schedule, warmup_epochs=5)
        assert [learning_rate(recipe, e) for e in (0, 1, 2.5, 4)] == pytest.approx([0, 0.04, 0.1, 0.16])

    @given(lengths, rates, st.floats(0.5, 50), st.sampled_from(SCHEDULES))
    def test_ends_at_the_full_rate_without_a_jump(self, epochs, lr, warmup, schedule):
        assume(warmup < epochs / 2)  # before the first milestone
        recipe = Recipe(epochs=epochs, lr=lr, schedule=schedule, warmup_epochs=warmup)
        assert learning_rate(recipe, warmup) == pytest.approx(lr)
        assert learning_rate(recipe, warmup * (1 - 1e-9)) == pytest.approx(lr)

    @pytest.mark.parametrize("schedule", SCHEDULES)
    def test_without_one_the_first_rate_is_the_full_rate(self, schedule):
        assert learning_rate(Recipe(epochs=10, lr=0.3, schedule=schedule), 0) == pytest.approx(0.3)


class TestCosine:
    @given(lengths, rates, st.floats(0, 50), st.floats(0, 1))
    def test_is_the_closed_form_after_the_warm_up(self, epochs, lr, warmup, share):
        assume(warmup < epochs - 1)
        recipe = Recipe(epochs=epochs, lr=lr, schedule="cosine", warmup_epochs=warmup)
        epoch = warmup + share * (epochs - warmup)
        # written as a squared cosine: 1 + cos x = 2 cos^2(x/2)
        expected = lr * math.cos(math.pi / 2 * share) ** 2
        assert learning_rate(recipe, epoch) == pytest.approx(expected, abs=1e-9)

    def test_landmarks(self):
        recipe = Recipe(epochs=105, lr=0.01, schedule="cosine", warmup_epochs=5)
        assert learning_rate(recipe, 55) == pytest.approx(0.005)  # half way
        assert learning_rate(recipe, 5 + 100 / 3) == pytest.approx(0.0075)
        assert learning_rate(recipe, 105) == pytest.approx(0, abs=1e-18)

    def test_never_rises_after_the_warm_up(self):
        recipe = Recipe(epochs=30, lr=0.1, schedule="cosine", warmup_epochs=2)
        falling = [learning_rate(recipe, 2 + i / 10) for i in range(281)]
        assert falling == sorted(falling, reverse=True)


class TestStep:
    def test_a_tenth_from_each_milestone_on(self):
        recipe = Recipe(epochs=100, lr=0.1, schedule="step", milestones=[0.5, 0.75])
        rates = [learning_rate(recipe, e) for e in (0, 49.9, 50, 74.9, 75, 99.9)]
        assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])

    def test_milestones_count_from_the_start_of_training_not_from_the_end_of_the_warm_up(self):
        recipe = Recipe(epochs=20, lr=1.0, schedule="step", milestones=[0.5], warmup_epochs=5)
        assert [learning_rate(recipe, e) for e in (9.9, 10)] == pytest.approx([1.0, 0.1])

    def test_no_milestones_no_step(self):
        recipe = Recipe(epochs=10, lr=0.5, schedule="step", milestones=[])
        assert learning_rate(recipe, 9.9) == 0.5


class TestLinear:
    def test_falls_in_a_straight_line_to_zero(self):
        recipe = Recipe(epochs=10, lr=1.0, schedule="linear", warmup_epochs=2)
        rates = [learning_rate(recipe, epoch) for epoch in (1, 2, 4, 6, 10)]
        assert rates == pytest.approx([0.5, 1.0, 0.75, 0.5, 0.0])


def test_constant_stays():
    recipe = Recipe(epochs=10, lr=0.5, schedule="constant")
    assert {learning_rate(recipe, e / 7) for e in range(70)} == {0.5}


@given(lengths, rates, st.floats(0, 10), st.sampled_from(SCHEDULES), st.floats(0, 1))
def test_no_rate_is_negative_or_above_the_recipes(epochs, lr, warmup, schedule, share):
    assume(warmup < epochs)
    recipe = Recipe(epochs=epochs, lr=lr, schedule=schedule, warmup_epochs=warmup)
    assert 0 <= learning_rate(recipe, share * epochs) <= lr


class TestScaled:
    def test_takes_the_warm_up_along_and_nothing_else(self):
        recipe = Recipe(epochs=300, lr=0.05, warmup_epochs=5, schedule="step", milestones=[0.3, 0.6])
        assert scaled(recipe, 0.1) == replace(recipe, epochs=30, warmup_epochs=0.5)

    def test_one_changes_nothing(self):
        recipe = Recipe(epochs=7, warmup_epochs=2)
        assert scaled(recipe, 1.0) == recipe

    @pytest.mark.parametrize(
        ("epochs", "factor", "expected"), [(3, 0.1, 1), (30, 0.05, 2), (3, 2.5, 8), (0, 9, 0)]
    )
    def test_rounds_but_keeps_an_epoch_where_there_was_one(self, epochs, factor, expected):
        assert scaled(Recipe(epochs=epochs), factor).epochs == expected

    @given(st.floats(0, 1))
    def test_keeps_the_shape_of_the_schedule(self, share):
        recipe = Recipe(epochs=100, lr=0.1, schedule="cosine", warmup_epochs=10)
        short = scaled(recipe, 0.1)
        assert learning_rate(short, share * 10) == pytest.approx(learning_rate(recipe, share * 100))

    def test_the_warm_up_stays_below_the_whole_when_rounding_shortens_it(self):
        short = scaled(Recipe(epochs=14, warmup_epochs=13), 0.1)  # 1.4 epochs become one
        assert (short.epochs, short.warmup_epochs) == (1, pytest.approx(13 / 14))

    def test_leaves_the_recipe_it_was_given(self):
        recipe = Recipe(epochs=100, warmup_epochs=10)
        scaled(recipe, 0.5)
        assert (recipe.epochs, recipe.warmup_epochs) == (100, 10)
