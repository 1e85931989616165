"""Canonical JSON, digests and derived seeds: literal values, so that stored keys never change unnoticed."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpslim.base.files import canonical, derive_seed, digest

numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
values = st.none() | st.booleans() | numbers | st.text() | st.lists(numbers, max_size=3)


def test_golden_texts_digests_and_seeds_which_are_distinct_63_bit_numbers():
    """If this fails, every stage that anyone has stored is made again: is that meant?"""
    text = '{"a":{"\\u00e9":0.0001},"b":[1,2.5,null,true]}'
    assert canonical({"b": [1, 2.5, None, True], "a": {"é": 1e-4}}) == text
    assert len({canonical(one) for one in (1, 1.0, True, "1")}) == 4
    assert digest({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert derive_seed(0) == 7520536977032167579
    assert derive_seed(0, "baseline", "batches", 0) == 4153223097916187375
    purposes = [(s, name, e) for s in range(5) for name in ("baseline", "finetune") for e in range(100)]
    purposes += [(0,), (1, 2), (2, 1), (12,), (0, "a", "b"), (0, "ab"), (0, "a", 0), (0, "a", "0")]
    seeds = {derive_seed(*purpose) for purpose in purposes}
    assert len(seeds) == len(purposes)
    assert all(0 <= seed < 2**63 for seed in seeds)


@given(st.dictionaries(st.text(), values, max_size=4), st.randoms(use_true_random=False))
def test_the_order_of_names_does_not_matter(value, order):
    names = order.sample(list(value), len(value))
    assert canonical([{name: value[name] for name in names}]) == canonical([value])


@pytest.mark.parametrize("bad", [math.nan, -math.inf, {1}])
def test_what_json_cannot_say_is_refused_however_deep(bad):
    with pytest.raises((ValueError, TypeError), match="JSON"):
        canonical({"train": {"lr": [bad]}})
