"""Content keys: literal ones, so that stored stages are never orphaned unnoticed, and their properties."""

from __future__ import annotations

import hashlib
import math
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpslim.base.hashing import KEY_LENGTH, canonical, derive_seed, digest, stage_key

SETTINGS = {
    "lamb": 1e-4,
    "penalty": {"M": 1.0, "p": 5.0},
    "milestones": [0.5, 0.75],
    "cap": None,
}
PARENT = "0123456789abcdef"

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
described = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def shuffled(value: object, order: random.Random) -> object:
    """Return an equal value whose dictionaries were filled in another order."""
    if isinstance(value, dict):
        names = list(value)
        order.shuffle(names)
        return {name: shuffled(value[name], order) for name in names}
    if isinstance(value, list):
        return [shuffled(each, order) for each in value]
    return value


class TestGolden:
    """If one of these fails, every stage that anyone has stored is made again: is that meant?"""

    def test_canonical_text(self):
        value = {"b": [1, 2.5, None, True], "a": {"é": "x"}}
        assert canonical(value) == '{"a":{"\\u00e9":"x"},"b":[1,2.5,null,true]}'

    def test_floats_are_written_as_python_writes_them(self):
        assert (
            canonical([1e-4, 1.5e-3, 5.0, 1e16, 0.1 + 0.2]) == "[0.0001,0.0015,5.0,1e+16,0.30000000000000004]"
        )

    def test_digest(self):
        assert (
            digest({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
        )  # sha256sum of {}
        mixed = "f58b44e5acfe005e0b3a2840ed149983a829f41780bab5cd2ffd6fe2bb53900d"
        assert digest([1, 2.5, None, True, "x"]) == mixed

    def test_stage_keys(self):
        assert stage_key("baseline", 1, {}, None) == "a0f9d5b3abf1e66e"
        assert stage_key("sparsify", 1, SETTINGS, PARENT) == "f29cc88960ca0b9b"

    def test_seeds(self):
        assert derive_seed(0) == 7520536977032167579
        assert derive_seed(0, "baseline", "batches", 0) == 4153223097916187375
        assert derive_seed(1, "baseline", "batches", 0) == 6206083561017421481


class TestCanonical:
    @given(described, st.integers(0, 2**32))
    def test_the_order_of_names_does_not_matter(self, value, seed):
        assert canonical(shuffled(value, random.Random(seed))) == canonical(value)

    def test_the_order_of_a_list_does(self):
        assert canonical([0.5, 0.75]) != canonical([0.75, 0.5])

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_what_is_not_a_number_is_refused_however_deep(self, bad):
        for value in (bad, [1.0, bad], {"recipe": {"lr": [bad]}}):
            with pytest.raises(ValueError, match="not JSON compliant"):
                canonical(value)
            with pytest.raises(ValueError, match="not JSON compliant"):
                stage_key("baseline", 1, {"value": value}, None)

    @pytest.mark.parametrize("bad", [{1, 2}, b"bytes", object()], ids=["set", "bytes", "object"])
    def test_what_is_not_json_is_refused(self, bad):
        with pytest.raises(TypeError, match="not JSON serializable"):
            canonical({"x": bad})

    @given(described, described)
    def test_equal_texts_come_from_equal_values_only(self, one, other):
        # repr tells 1 from 1.0 and from True, as the text does
        same = repr(by_name(one)) == repr(by_name(other))
        assert (canonical(one) == canonical(other)) == same


def by_name(value: object) -> object:
    if isinstance(value, dict):
        return {name: by_name(value[name]) for name in sorted(value)}
    return [by_name(each) for each in value] if isinstance(value, list) else value


class TestStageKey:
    def test_is_short_and_hexadecimal(self):
        key = stage_key("prune", 1, SETTINGS, PARENT)
        assert len(key) == KEY_LENGTH == 16
        assert set(key) <= set("0123456789abcdef")

    def test_is_the_start_of_the_hash_of_the_documented_text(self):
        text = '{"config":{"ratio":0.5},"parent":null,"stage":"prune","version":2}'
        assert stage_key("prune", 2, {"ratio": 0.5}, None) == hashlib.sha256(text.encode()).hexdigest()[:16]

    def test_everything_it_is_made_of_changes_it(self):
        keys = [
            stage_key("prune", 1, SETTINGS, PARENT),
            stage_key("finetune", 1, SETTINGS, PARENT),
            stage_key("prune", 2, SETTINGS, PARENT),
            stage_key("prune", 1, {**SETTINGS, "lamb": 2e-4}, PARENT),
            stage_key("prune", 1, {**SETTINGS, "penalty": {"M": None, "p": 5.0}}, PARENT),
            stage_key("prune", 1, {k: v for k, v in SETTINGS.items() if k != "cap"}, PARENT),
            stage_key("prune", 1, SETTINGS, PARENT[::-1]),
            stage_key("prune", 1, SETTINGS, None),
        ]
        assert len(set(keys)) == len(keys)

    @given(st.integers(0, 2**32))
    def test_the_order_of_the_settings_does_not(self, seed):
        mixed = shuffled(SETTINGS, random.Random(seed))
        assert stage_key("prune", 1, mixed, PARENT) == stage_key("prune", 1, SETTINGS, PARENT)


class TestDeriveSeed:
    def test_no_two_purposes_share_a_seed(self):
        stages = ("baseline", "sparsify", "finetune")
        seeds = [
            derive_seed(s, stage, "batches", e) for s in range(5) for stage in stages for e in range(100)
        ]
        seeds += [derive_seed(s) for s in range(5)]
        seeds += [derive_seed(s, "initial weights") for s in range(5)]
        assert len(set(seeds)) == len(seeds)

    def test_the_parts_of_a_purpose_do_not_run_together(self):
        purposes = [("a", "b"), ("ab",), ("a,b",), ("b", "a"), ("a", "b", 0), ("a", "b", "0")]
        assert len({derive_seed(0, *purpose) for purpose in purposes}) == len(purposes)

    def test_the_seed_is_no_part_of_the_purpose(self):
        assert derive_seed(1, 2) != derive_seed(2, 1) != derive_seed(12)

    @given(st.integers(0, 2**40), st.text(), st.integers(0, 1000))
    def test_fits_the_generators_and_is_the_same_again(self, seed, name, number):
        value = derive_seed(seed, name, number)
        assert 0 <= value < 2**63
        assert value == derive_seed(seed, name, number)

    def test_neighbouring_seeds_differ_in_about_half_of_the_bits(self):
        values = [derive_seed(s, "batches") for s in range(200)]
        flipped = [(a ^ b).bit_count() for a, b in pairwise(values)]
        assert 29 < sum(flipped) / len(flipped) < 34  # 31.5 of 63, with a deviation of 0.3
