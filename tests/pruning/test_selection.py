"""Which units stay: properties of the global order, against references written without it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

from lpslim.base.errors import UserError
from lpslim.pruning import selection
from lpslim.pruning.criteria import magnitude
from lpslim.pruning.selection import TOLERANCE, Ranking, by_ratio, by_target, floors, strongest
from lpslim.pruning.units import Units, pooled

LEVELS = 5  # few distinct scores, so that ties are everywhere


def layers(sizes: Sequence[int], sensitive: Sequence[bool] | None = None) -> list[Units]:
    marks = sensitive or [False] * len(sizes)
    return [Units(f"layer{i}", n, mark, (), ()) for i, (n, mark) in enumerate(zip(sizes, marks, strict=True))]


@st.composite
def scored_layers(draw: st.DrawFn) -> tuple[list[Units], list[Tensor]]:
    """A few layers of a few units, some of them sensitive, with scores that often tie."""
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=5))
    marks = [draw(st.booleans()) for _ in sizes]
    scores = [
        torch.tensor(draw(st.lists(st.integers(0, LEVELS), min_size=n, max_size=n)), dtype=torch.float64)
        / LEVELS
        for n in sizes
    ]
    return layers(sizes, marks), scores


shares = st.floats(0, 0.99)


def reference_by_ratio(
    units: list[Units], scores: list[Tensor], least: list[int], ratio: float
) -> dict[str, list[int]]:
    """Remove unit after unit from the lowest score up, by plain loops, but in layers at their floor."""
    everything = []
    for i, values in enumerate(scores):
        for j, value in enumerate(values.tolist()):
            everything.append((value, i, j))
    everything.sort()
    kept = {each.layer: list(range(each.size)) for each in units}
    for _, i, j in everything[: int(ratio * len(everything))]:
        left = kept[units[i].layer]
        if len(left) > least[i]:
            left.remove(j)
    return kept


# ---- floors


@given(st.lists(st.tuples(st.integers(1, 600), st.booleans()), min_size=1, max_size=6), shares, shares)
def test_floors_are_rounded_down_shares_and_never_none(described, adjust, floor):
    units = layers([n for n, _ in described], [mark for _, mark in described])
    for each, least in zip(units, floors(units, adjust=adjust, floor=floor), strict=True):
        exact = (adjust if each.sensitive else floor) * each.size
        assert 1 <= least <= each.size
        assert least == 1 or exact - 1 < least <= exact + 1e-6


@pytest.mark.parametrize(
    ("size", "share", "least"),
    [(64, 0.45, 28), (512, 0.3, 153), (10, 0.3, 3), (100, 0.29, 29), (16, 0.0, 1), (2, 0.3, 1), (1, 0.9, 1)],
)
def test_floors_by_hand(size, share, least):
    # 0.29 * 100 is 28.999999999999996 in floating point: still 29 units
    assert floors(layers([size], [True]), adjust=share, floor=0.0) == [least]
    assert floors(layers([size], [False]), adjust=0.0, floor=share) == [least]


# ---- by ratio


@given(scored_layers(), shares, shares, shares)
def test_by_ratio_equals_the_reference(made, adjust, floor, ratio):
    units, scores = made
    least = floors(units, adjust=adjust, floor=floor)
    assert by_ratio(units, scores, least, ratio) == reference_by_ratio(units, scores, least, ratio)


@given(scored_layers(), shares, shares, shares)
def test_floors_hold_and_no_layer_is_emptied(made, adjust, floor, ratio):
    units, scores = made
    least = floors(units, adjust=adjust, floor=floor)
    kept = by_ratio(units, scores, least, ratio)
    assert list(kept) == [each.layer for each in units]
    for each, n in zip(units, least, strict=True):
        indices = kept[each.layer]
        assert len(indices) >= n >= 1
        assert indices == sorted(set(indices))
        assert set(indices) <= set(range(each.size))


@given(scored_layers(), shares)
def test_without_floors_exactly_the_ratio_goes(made, ratio):
    units, scores = made
    kept = by_ratio(units, scores, [0] * len(units), ratio)
    total = sum(each.size for each in units)
    assert total - sum(map(len, kept.values())) == int(ratio * total)


@given(scored_layers(), shares, shares)
def test_removed_units_score_no_higher_than_kept_ones(made, floor, ratio):
    units, scores = made
    least = floors(units, adjust=floor, floor=floor)
    kept = by_ratio(units, scores, least, ratio)
    removed = [
        values[j].item()
        for each, values in zip(units, scores, strict=True)
        for j in range(each.size)
        if j not in kept[each.layer]
    ]
    for each, values, n in zip(units, scores, least, strict=True):
        inside = [values[j].item() for j in range(each.size) if j not in kept[each.layer]]
        left = [values[j].item() for j in kept[each.layer]]
        assert max(inside, default=-1) <= min(left)  # inside a layer always
        if len(left) > n:  # and across layers, where it is not the floor that holds a unit back
            assert max(removed, default=-1) <= min(left)


@given(scored_layers(), shares, shares, shares)
def test_a_higher_ratio_only_removes_more(made, floor, one, other):
    units, scores = made
    least = floors(units, adjust=floor, floor=floor)
    few, many = (by_ratio(units, scores, least, ratio) for ratio in sorted((one, other)))
    assert all(set(many[each.layer]) <= set(few[each.layer]) for each in units)


@given(scored_layers(), shares, shares, shares)
def test_a_higher_floor_only_keeps_more(made, ratio, one, other):
    units, scores = made
    low, high = (floors(units, adjust=floor, floor=floor) for floor in sorted((one, other)))
    less, more = (by_ratio(units, scores, least, ratio) for least in (low, high))
    assert all(set(less[each.layer]) <= set(more[each.layer]) for each in units)


def test_ties_go_to_the_first_layer_then_the_first_unit():
    units = layers([3, 4])
    scores = [torch.full((3,), 0.5), torch.full((4,), 0.5)]
    assert by_ratio(units, scores, [1, 1], 4 / 7) == {"layer0": [2], "layer1": [1, 2, 3]}
    assert by_ratio(units, scores, [1, 1], 2 / 7) == {"layer0": [2], "layer1": [0, 1, 2, 3]}


def test_many_ties_keep_their_order():
    # a sort that is not stable shuffles equal scores only in longer lists
    units = layers([2000, 2000])
    scores = [torch.zeros(2000), torch.zeros(2000)]
    kept = by_ratio(units, scores, [1, 1], 0.25)
    assert kept == {"layer0": list(range(1000, 2000)), "layer1": list(range(2000))}


@given(scored_layers(), st.integers(0, 60))
def test_counts_are_what_is_left(made, lowest):
    units, scores = made
    ranking = Ranking(scores, [1] * len(units))
    gone = ranking.remove(lowest)
    kept = ranking.kept(units, gone)
    assert ranking.counts(gone) == [len(kept[each.layer]) for each in units]


# ---- by target


def chain(sizes: Sequence[int], areas: Sequence[int]) -> Callable[[Sequence[int]], float]:
    """Return the share of multiply-adds gone from a plain chain of layers between widths 3 and 10."""

    def macs(widths: Sequence[int]) -> int:
        padded = [3, *widths, 10]
        return sum(area * a * b for area, a, b in zip(areas, padded[:-1], padded[1:], strict=True))

    return lambda widths: 1 - macs(widths) / macs(sizes)


def achieved(kept: dict[str, list[int]], drop: Callable[[Sequence[int]], float]) -> float:
    return drop([len(indices) for indices in kept.values()])


@given(st.integers(0, 10_000), st.floats(0.01, 0.99), st.sampled_from([0.0, 0.1, 0.3]))
def test_a_wide_network_meets_every_target_within_reach(seed, target, floor):
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(150, 300, (4,), generator=generator).tolist()
    scores = [torch.rand(n, generator=generator) for n in sizes]
    units, drop = layers(sizes, [True, False, False, False]), chain(sizes, [16, 16, 4, 4, 1])
    least = floors(units, adjust=0.45, floor=floor)
    reachable = drop(least)
    # one unit less of any layer is less than twice the tolerance: some threshold must be near enough
    assert all(drop([n - (i == j) for j, n in enumerate(sizes)]) < 2 * TOLERANCE for i in range(4))

    if target > reachable + TOLERANCE:
        with pytest.raises(UserError, match="cannot be met"):
            by_target(units, scores, least, target, drop)
        return
    kept = by_target(units, scores, least, target, drop)
    assert abs(achieved(kept, drop) - target) <= TOLERANCE
    assert all(len(kept[each.layer]) >= n for each, n in zip(units, least, strict=True))


@given(scored_layers(), st.floats(0.01, 0.99), shares)
def test_a_narrow_network_meets_its_target_or_says_its_range(made, target, floor):
    units, scores = made
    sizes = [each.size for each in units]
    drop = chain(sizes, [4] * (len(sizes) + 1))
    least = floors(units, adjust=floor, floor=floor)
    try:
        kept = by_target(units, scores, least, target, drop)
    except UserError as error:
        message = str(error)
    else:
        assert abs(achieved(kept, drop) - target) <= TOLERANCE
        for each, n in zip(units, least, strict=True):
            assert len(kept[each.layer]) >= n
            assert kept[each.layer] == sorted(set(kept[each.layer]))
        return
    numbers = re.fullmatch(
        r"target (\S+) %: cannot be met within 0\.3 points; (?:the nearest are (\S+) and (\S+) %; )?"
        r"with these floors (\S+) to (\S+) % can be removed",
        message,
    )
    assert numbers is not None, message
    asked, below, above, lowest, highest = (float(each or "nan") for each in numbers.groups())  # to 0.01
    assert asked == pytest.approx(100 * target, abs=0.0051)
    assert lowest == pytest.approx(100 * drop(sizes), abs=0.0051)
    assert highest == pytest.approx(100 * drop(least), abs=0.0051)
    if math.isnan(below):
        assert target > drop(least)
        return
    assert below < asked < above
    for nearest in (below / 100, above / 100):  # what is named can be had
        assert abs(achieved(by_target(units, scores, least, nearest, drop), drop) - nearest) <= TOLERANCE


@given(scored_layers(), shares, shares)
def test_what_a_ratio_removes_can_be_asked_for_as_a_target(made, floor, ratio):
    units, scores = made
    drop = chain([each.size for each in units], [4] * (len(units) + 1))
    least = floors(units, adjust=floor, floor=floor)
    target = achieved(by_ratio(units, scores, least, ratio), drop)
    assume(target > 0)
    assert abs(achieved(by_target(units, scores, least, target, drop), drop) - target) <= TOLERANCE


@given(st.integers(0, 10_000), st.floats(0.05, 0.8), st.floats(0.05, 0.8))
def test_a_higher_target_only_removes_more(seed, one, other):
    generator = torch.Generator().manual_seed(seed)
    sizes = [200, 200, 200]
    units, drop = layers(sizes), chain(sizes, [4, 4, 4, 4])
    scores = [torch.rand(n, generator=generator) for n in sizes]
    few, many = (by_target(units, scores, [1, 1, 1], target, drop) for target in sorted((one, other)))
    assert all(set(many[each.layer]) <= set(few[each.layer]) for each in units)


def test_the_lowest_scores_go_first_for_a_target():
    units, scores = layers([100]), [torch.linspace(0, 1, 100).flip(0)]
    kept = by_target(units, scores, [1], 0.25, lambda widths: 1 - widths[0] / 100)
    assert kept == {"layer0": list(range(75))}


@pytest.mark.parametrize(("target", "removed"), [(0.2504, 250), (0.2506, 251), (0.001, 1), (0.999, 999)])
def test_the_nearest_threshold_is_taken(target, removed):
    units, scores = layers([1000]), [torch.linspace(0, 1, 1000)]
    kept = by_target(units, scores, [1], target, lambda widths: 1 - widths[0] / 1000)
    assert kept == {"layer0": list(range(removed, 1000))}


def test_light_units_fill_what_a_heavy_one_leaves():
    """A unit of layer 0 weighs 5 points, one of layer 1 a tenth: no threshold alone meets 6.2 %."""
    units = layers([10, 500])
    scores = [torch.linspace(0.0, 0.4, 10), torch.linspace(0.5, 1.0, 500)]

    def drop(widths: Sequence[int]) -> float:
        return 0.05 * (10 - widths[0]) + 0.001 * (500 - widths[1])

    kept = by_target(units, scores, [1, 1], 0.062, drop)
    assert kept["layer0"] == list(range(1, 10))  # the second heavy unit would overshoot
    first = kept["layer1"][0]
    assert kept["layer1"] == list(range(first, 500))  # the lowest of the light ones, no gap
    assert abs(0.05 + 0.001 * first - 0.062) <= TOLERANCE


def test_no_filling_below_a_floor():
    units = layers([10, 500])
    scores = [torch.linspace(0.0, 0.4, 10), torch.linspace(0.5, 1.0, 500)]

    def drop(widths: Sequence[int]) -> float:
        return 0.05 * (10 - widths[0]) + 0.001 * (500 - widths[1])

    with pytest.raises(
        UserError, match=r"target 7\.00 %.* nearest are 5\.50 and 10\.00 %.* 0\.00 to 45\.50 % can be removed"
    ):
        by_target(units, scores, [1, 495], 0.07, drop)  # five light units do not fill two points


def test_what_overshoots_least_is_named_though_a_later_threshold_passes_further():
    units = layers([10, 500])
    scores = [torch.linspace(0.0, 0.4, 10), torch.linspace(0.5, 1.0, 500)]

    def drop(widths: Sequence[int]) -> float:
        return 0.05 * (10 - widths[0]) + 0.02 * (500 - widths[1])

    with pytest.raises(UserError, match=r"target 6\.20 %.* the nearest are 5\.00 and 7\.00 %;"):
        by_target(units, scores, [1, 490], 0.062, drop)
    kept = by_target(units, scores, [1, 490], 0.07, drop)
    assert achieved(kept, drop) == pytest.approx(0.07)


def test_a_closer_tolerance():
    units, scores = layers([100]), [torch.linspace(0, 1, 100)]

    def drop(widths: Sequence[int]) -> float:
        return 1 - widths[0] / 100

    assert len(by_target(units, scores, [1], 0.202, drop)["layer0"]) == 80
    with pytest.raises(UserError, match=r"within 0\.1 points; the nearest are 20\.00 and 21\.00 %"):
        by_target(units, scores, [1], 0.202, drop, tolerance=0.001)


# ---- widths in steps


@given(scored_layers(), st.floats(0.01, 0.99), shares, st.sampled_from([2, 3, 8]))
def test_steps_refuse_only_what_lies_beyond_their_widest_cut(made, target, floor, round_to):
    units, scores = made
    drop = chain([each.size for each in units], [4] * (len(units) + 1))
    least = floors(units, adjust=floor, floor=floor)
    fewest = selection.fewest(units, least, round_to)
    for each, n, lowest in zip(units, fewest, least, strict=True):
        assert n == each.size or (n % round_to == 0 and lowest <= n < lowest + round_to)
    most = drop(fewest)
    if target > most + TOLERANCE:
        with pytest.raises(UserError) as refused:
            by_target(units, scores, least, target, drop, round_to)
        assert str(refused.value).endswith(
            f"; with these floors and round_to={round_to} 0.00 to {100 * most:.2f} % can be removed"
        )
        return
    kept = by_target(units, scores, least, target, drop, round_to)
    assert all(len(kept[each.layer]) >= n for each, n in zip(units, fewest, strict=True))


def test_steps_take_the_nearest_within_reach_however_far():
    units, scores = layers([64]), [torch.linspace(0, 1, 64)]

    def drop(widths: Sequence[int]) -> float:
        return 1 - widths[0] / 64

    assert len(by_target(units, scores, [1], 0.4, drop, round_to=32)["layer0"]) == 32
    assert len(by_target(units, scores, [1], 0.1, drop, round_to=32)["layer0"]) == 64
    with pytest.raises(UserError, match=r"target 90\.00 %.*round_to=32 0\.00 to 50\.00 % can be removed"):
        by_target(units, scores, [1], 0.9, drop, round_to=32)


# ---- the scores


def test_magnitude_counts_the_filter_only():
    model = nn.Sequential(nn.Conv2d(1, 3, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([-4.0, 1.0, 2.0]).view(3, 1, 1, 1))
        model[0].bias.copy_(torch.tensor([0.0, 100.0, 0.0]))
    (values,) = magnitude.score(model, [Units("0", 3, False, (), ())])
    assert values.tolist() == [4.0, 1.0, 2.0]


@given(st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=20))
def test_minmax_keeps_the_order_and_fills_the_interval(numbers):
    values = torch.tensor(numbers, dtype=torch.float64)
    mapped = selection.minmax(values)
    assert torch.all((mapped >= 0) & (mapped <= 1))
    assert mapped.min() == 0
    if len(set(numbers)) > 1:
        assert mapped.max() == 1
    ascending = mapped[values.argsort()]
    assert torch.all(ascending.diff() >= 0)


@pytest.mark.parametrize("values", [[0.0, 0.0, 0.0], [2.5, 2.5], [7.0]])
def test_where_none_stands_out_all_score_zero(values):
    # dividing by the empty range would give NaN, which sorts above every score
    assert selection.minmax(torch.tensor(values)).tolist() == [0.0] * len(values)


@pytest.mark.parametrize("layer", ["nowhere", "1"])
def test_magnitude_of_a_layer_without_weight(layer):
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU())
    with pytest.raises(UserError, match=f"layer '{layer}': the network has none of this name with a weight"):
        magnitude.score(model, [Units(layer, 3, False, (), ())])


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=12), st.lists(st.integers(0, 9), min_size=1, max_size=12)
)
def test_uniform_takes_the_same_share_of_every_layer(one, other):
    scores = [torch.tensor(values, dtype=torch.float64) for values in (one, other)]
    scaled = [selection.uniform(values) for values in scores]
    for values, shares in zip(scores, scaled, strict=True):
        assert shares[values.argsort(stable=True)].tolist() == [i / len(values) for i in range(len(values))]
    ranking = Ranking(scaled, [0, 0])
    for lowest in range(len(one) + len(other) + 1):
        gone = [len(layer) / n for layer, n in zip(ranking.remove(lowest), ranking.sizes, strict=True)]
        assert abs(gone[0] - gone[1]) <= max(1 / n for n in ranking.sizes) + 1e-12


def test_raw_is_one_threshold():
    values = torch.tensor([3.0, 1.0])
    assert selection.ACROSS["raw"](values) is values


def test_strongest_keeps_so_many_of_the_highest():
    units = [Units("a", 4, False, (), ()), Units("b", 3, False, (), ())]
    scores = [torch.tensor([0.1, 5.0, 5.0, 5.0]), torch.tensor([1.0, 0.0, 2.0])]
    assert strongest(units, scores, [2, 3]) == {"a": [1, 2], "b": [0, 1, 2]}


def test_units_of_a_grouped_convolution_pool_their_channels():
    units = [Units("a", 2, False, (), (), groups=3), Units("b", 2, False, (), ())]
    scores = [torch.tensor([1.0, 2.0, 10.0, 20.0, 100.0, 200.0]), torch.tensor([7.0, 8.0])]
    assert [s.tolist() for s in pooled(units, scores)] == [[111.0, 222.0], [7.0, 8.0]]


def test_heads_are_multiples_of_their_own_width():
    heads = Units("query", 12, False, ("query",), ("output",), span=64)
    assert selection._steps([heads], 8) == [1]
    assert selection._steps([replace(heads, span=12)], 8) == [2]  # 24 channels
