"""A few hundred spoilt files for each reader, the same ones every time; more by tests.security.fuzzing."""

import pytest

from tests.security import fuzzing


@pytest.mark.parametrize(("target", "count"), [("records", 600), ("checkpoint", 400), ("architecture", 250)])
def test_spoilt_files_are_accepted_or_refused_and_nothing_else(target, count):
    outcomes = fuzzing.run(target, seed=0, count=count)
    assert outcomes.total() == count
    assert outcomes["refused"] > count / 3
    assert set(outcomes) <= {"accepted", "refused"}
