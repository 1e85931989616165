"""The figures that the findings page quotes are those of the records."""

import re

import pytest

from lpslim import records
from lpslim.penalties.lp import Lp
from tests.composing import ROOT

PAGE = (ROOT / "docs" / "findings.md").read_text()


def convergence(experiment):
    (found,) = [r for r in records.read_all(ROOT / "results") if r.experiment == experiment and r.seed == 0]
    return found.convergence


@pytest.mark.parametrize("iteration", [1, 2, 3])
def test_the_shares_are_those_of_the_records(iteration):
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| {iteration} |"))
    names = ("lp", "lp_no_cap", "l1")
    capped, free, plain = (convergence(f"cifar10_resnet20/{name}")[iteration - 1] for name in names)
    measured = [capped["sparsity"], capped["capped"], free["sparsity"], plain["sparsity"]]
    assert re.findall(r"[\d.]+ %", row) == [f"{100 * share:.1f} %" for share in measured]


def test_the_knee_is_that_of_the_penalty():
    assert f"|z| = {Lp(5, 1).knee:.3f}" in PAGE


def test_the_methods_are_as_close_as_the_page_says():
    found = [r for r in records.read_all(ROOT / "results") if r.experiment.startswith("cifar10_resnet20/")]
    final = [r.accuracy["finetune"]["last"] for r in found if r.seed == 0]
    gap = max(final) - min(final)
    assert gap < 0.4
    assert f"the widest gap, {gap:.2f}," in PAGE
    assert all(20 < r.accuracy["prune"]["last"] < 25 for r in found)
