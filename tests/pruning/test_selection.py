"""The units that stay: properties of the global order, against references written without it."""

import re
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lpslim.base.errors import UserError
from lpslim.pruning import selection
from lpslim.pruning.selection import TOLERANCE, Target, by_ratio, by_target, fewest, floors, strongest
from lpslim.pruning.units import Units, pooled

LEVELS = 5  # few distinct scores, so that ties are everywhere
shares = st.floats(0, 0.99)


def layers(sizes, sensitive=()):
    marks = [*sensitive, *[False] * len(sizes)]
    return [Units(f"layer{i}", n, marks[i], (), ()) for i, n in enumerate(sizes)]


@st.composite
def scored_layers(draw):
    """A few layers of a few units, some of them sensitive, with scores that often tie."""
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=5))
    levels = [draw(st.lists(st.integers(0, LEVELS), min_size=n, max_size=n)) for n in sizes]
    scores = [torch.tensor(values, dtype=torch.float64) / LEVELS for values in levels]
    return layers(sizes, [draw(st.booleans()) for _ in sizes]), scores


def target(share, drop, **options):
    return Target(f"target_flops={share}", share, drop, **options)


def chain(units, area=4):
    """Return the share of multiply-adds gone from a plain chain of layers between widths 3 and 10."""

    def macs(widths):
        padded = [3, *widths, 10]
        return sum(area * a * b for a, b in pairwise(padded))

    return lambda widths: 1 - macs(widths) / macs([unit.size for unit in units])


def achieved(kept, drop):
    return drop([len(indices) for indices in kept.values()])


# ---- scores on one scale, and floors


@given(st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=20))
def test_norms_keep_the_order_inside_a_layer(numbers):
    values = torch.tensor(numbers, dtype=torch.float64)
    order = values.argsort(stable=True)
    mapped, shared = selection.minmax(values), selection.uniform(values)
    assert torch.all(mapped[order].diff() >= 0)
    assert (mapped.min(), mapped.max()) == (0, float(len(set(numbers)) > 1))
    assert shared[order].tolist() == [i / len(values) for i in range(len(values))]
    assert selection.SCORE_NORMS["raw"](values) is values


@pytest.mark.parametrize(
    ("size", "share", "least"),
    [(64, 0.45, 28), (512, 0.3, 153), (100, 0.29, 29), (16, 0.0, 1), (2, 0.3, 1), (1, 0.9, 1)],
)
def test_floors_by_hand(size, share, least):
    # 0.29 * 100 is 28.999999999999996 in floating point: still 29 units
    assert floors(layers([size], [True]), adjust=share, floor=0.0) == [least]


def test_rounding_is_in_channels():
    heads = Units("query", 12, False, ("query",), ("output",), head_dim=64)
    narrow = Units("query", 12, False, ("query",), ("output",), head_dim=12)  # pairs of heads are 24 channels
    grouped = Units("conv", 6, False, (), (), groups=4)
    assert fewest([heads, narrow, grouped, *layers([30])], [5, 5, 3, 29], 8) == [5, 6, 4, 30]
    scores = [torch.tensor([1.0, 2.0, 10.0, 20.0, 100.0, 200.0]), torch.tensor([7.0, 8.0])]
    units = [Units("a", 2, False, (), (), groups=3), Units("b", 2, False, (), ())]
    assert [s.tolist() for s in pooled(units, scores)] == [[111.0, 222.0], [7.0, 8.0]]
    with pytest.raises(UserError, match="the criterion scores 12 channels of 6"):
        pooled(units[:1], [torch.zeros(12)])


# ---- by ratio


def reference_by_ratio(units, scores, least, ratio):
    """Remove unit after unit from the lowest score up, by plain loops, but in layers at their floor."""
    everything = sorted((s, i, j) for i, values in enumerate(scores) for j, s in enumerate(values.tolist()))
    kept = {unit.layer: list(range(unit.size)) for unit in units}
    for _, i, j in everything[: int(ratio * len(everything))]:
        left = kept[units[i].layer]
        if len(left) > least[i]:
            left.remove(j)
    return kept


@given(scored_layers(), shares, shares, shares)
def test_by_ratio_equals_the_reference(made, adjust, floor, ratio):
    units, scores = made
    least = floors(units, adjust=adjust, floor=floor)
    assert by_ratio(units, scores, least, ratio) == reference_by_ratio(units, scores, least, ratio)


def test_many_ties_go_to_the_first_layer_then_the_first_unit():
    # a sort that is not stable shuffles equal scores only in longer lists
    units, scores = layers([2000, 2000]), [torch.zeros(2000), torch.zeros(2000)]
    kept = by_ratio(units, scores, [1, 1], 0.25)
    assert kept == {"layer0": list(range(1000, 2000)), "layer1": list(range(2000))}


@given(scored_layers(), st.randoms(use_true_random=False))
def test_strongest_keeps_so_many_of_the_highest(made, order):
    units, scores = made
    widths = [order.randint(1, unit.size) for unit in units]
    for (_, kept), values, width in zip(strongest(*made, widths).items(), scores, widths, strict=True):
        assert (len(kept), kept) == (width, sorted(set(kept)))
        gone = [s for j, s in enumerate(values.tolist()) if j not in kept]
        assert max(gone, default=-1) <= values[kept].min()


# ---- by target


@given(st.integers(0, 10_000), st.floats(0.01, 0.99), st.floats(0.01, 0.99), st.sampled_from([0.0, 0.1, 0.3]))
def test_a_wide_network_meets_every_target_within_reach(seed, few, many, floor):
    generator = torch.Generator().manual_seed(seed)
    units = layers(torch.randint(150, 300, (4,), generator=generator).tolist(), [True])
    scores = [torch.rand(unit.size, generator=generator) for unit in units]
    drop, least, kept = chain(units), floors(units, adjust=0.45, floor=floor), None
    for share in sorted((few, many)):
        if share > drop(least) + TOLERANCE:
            with pytest.raises(UserError, match="must be at most"):
                by_target(units, scores, least, target(share, drop))
            continue
        smaller = by_target(units, scores, least, target(share, drop))
        assert abs(achieved(smaller, drop) - share) <= TOLERANCE
        assert all(len(smaller[unit.layer]) >= n for unit, n in zip(units, least, strict=True))
        assert kept is None or all(set(smaller[layer]) <= set(kept[layer]) for layer in kept)
        kept = smaller


@given(scored_layers(), st.floats(0.01, 0.99), shares)
def test_a_narrow_network_meets_its_target_or_names_the_nearest(made, share, floor):
    units, scores = made
    drop, least = chain(units), floors(units, adjust=floor, floor=floor)
    try:
        kept = by_target(units, scores, least, target(share, drop))
    except UserError as error:
        message = str(error)
    else:
        assert abs(achieved(kept, drop) - share) <= TOLERANCE
        assert all(len(kept[unit.layer]) >= n for unit, n in zip(units, least, strict=True))
        return
    assert message.startswith(f"target_flops={share}: ")
    if "must be at most" in message:
        assert share > drop(least) + TOLERANCE
        return
    below, above = map(float, re.search(r"nearest are (\S+) and (\S+)$", message).groups())
    assert below < share < above
    for nearest in (below, above):  # what is named can be had
        kept = by_target(units, scores, least, target(nearest, drop))
        assert abs(achieved(kept, drop) - nearest) <= TOLERANCE


@pytest.mark.parametrize(("share", "removed"), [(0.2504, 250), (0.2506, 251), (0.001, 1), (0.999, 999)])
def test_the_nearest_threshold_is_taken(share, removed):
    units, scores = layers([1000]), [torch.linspace(0, 1, 1000)]
    kept = by_target(units, scores, [1], target(share, lambda widths: 1 - widths[0] / 1000))
    assert kept == {"layer0": list(range(removed, 1000))}


def heavy_and_light(heavy, light):
    """Ten units of low score that weigh ``heavy`` each, and 500 above them that weigh ``light``."""
    scores = [torch.linspace(0.0, 0.4, 10), torch.linspace(0.5, 1.0, 500)]
    return layers([10, 500]), scores, lambda widths: heavy * (10 - widths[0]) + light * (500 - widths[1])


def test_light_units_fill_what_a_heavy_one_leaves_or_the_neighbours_are_named():
    units, scores, drop = heavy_and_light(0.05, 0.001)  # no threshold alone meets 6.2 %
    kept = by_target(units, scores, [1, 1], target(0.062, drop))
    first = kept["layer1"][0]
    assert kept["layer0"] == list(range(1, 10))  # the second heavy unit would overshoot
    assert kept["layer1"] == list(range(first, 500))  # the lowest of the light ones, no gap
    assert abs(0.05 + 0.001 * first - 0.062) <= TOLERANCE
    nearest = r"target_flops=0\.07: .* 0\.3 points; the nearest are 0\.0550 and 0\.1000$"
    with pytest.raises(UserError, match=nearest):
        by_target(units, scores, [1, 495], target(0.07, drop))  # five light units do not fill two points
    units, scores, drop = heavy_and_light(0.05, 0.02)
    with pytest.raises(UserError, match=r"the nearest are 0\.0500 and 0\.0700$"):
        by_target(units, scores, [1, 490], target(0.062, drop))
    assert achieved(by_target(units, scores, [1, 490], target(0.07, drop)), drop) == pytest.approx(0.07)


def test_a_number_of_parameters_has_its_own_tolerance_and_messages():
    units, scores = layers([100]), [torch.linspace(0, 1, 100)]

    def ask(share, tolerance, least=1):
        goal = Target("target_params=798", share, lambda widths: 1 - widths[0] / 100, tolerance, dense=1000)
        return by_target(units, scores, [least], goal)["layer0"]

    assert len(ask(0.202, TOLERANCE)) == 80
    with pytest.raises(UserError, match=r"^target_params=798: .* 0\.1 points; the nearest are 800 and 790$"):
        ask(0.202, 0.001)
    with pytest.raises(UserError, match=r"^target_params=798: must be at least 900,"):
        ask(0.202, 0.001, least=90)


@given(scored_layers(), st.floats(0.01, 0.99), shares, st.sampled_from([2, 3, 8]))
def test_steps_refuse_only_what_lies_beyond_their_widest_cut(made, share, floor, round_to):
    units, scores = made
    drop, least = chain(units), floors(units, adjust=floor, floor=floor)
    narrowest = fewest(units, least, round_to)
    if share > drop(narrowest) + TOLERANCE:
        with pytest.raises(UserError, match=f"must be at most {drop(narrowest):.4f}, .*round_to={round_to} "):
            by_target(units, scores, least, target(share, drop), round_to)
        return
    kept = by_target(units, scores, least, target(share, drop), round_to)
    for unit, n in zip(units, narrowest, strict=True):
        width = len(kept[unit.layer])
        assert width >= n
        assert width == unit.size or width % round_to == 0
    others = (by_ratio(units, scores, least, i / 20, round_to) for i in range(21))
    nearest = min(abs(achieved(other, drop) - share) for other in others)
    assert abs(achieved(kept, drop) - share) <= nearest + 1e-12  # however far it is
