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


def accuracy(row, stage="finetune", seed=0):
    (found,) = [r for r in records.read_all(ROOT / "results") if r.experiment == row and r.seed == seed]
    return found.accuracy[stage]["last"]


def cifar(name, stage="finetune"):
    return accuracy(f"cifar10_resnet20/{name}", stage)


def test_the_admm_makes_as_little_difference_as_the_page_says():
    final = {name: cifar(name) for name in ("lp", "lp_no_cap", "l1", "l0", "no_admm")}
    gap = max(final.values()) - min(final.values())
    assert gap < 0.4
    assert f"(the widest gap, {gap:.2f}, is between L0 and Lp without\n  the cap)" in PAGE
    assert (max(final, key=final.get), min(final, key=final.get)) == ("l0", "lp_no_cap")


def test_rivals_and_controls_are_as_far_apart_as_the_page_says():
    assert f"lose {cifar('no_admm') - cifar('random'):.2f} points" in PAGE
    norm, fpgm = cifar("l1_norm") - cifar("uniform"), cifar("fpgm") - cifar("uniform")
    assert f"L1 norm is {norm:.2f} points above random, FPGM {fpgm:.2f}" in PAGE
    chip, hrank = cifar("chip") - cifar("uniform"), cifar("hrank") - cifar("uniform")
    assert f"({chip:.2f} and {hrank:.2f} points above it at the same widths)" in PAGE
    assert max(chip, hrank) < norm / 1.9
    assert f"costs {accuracy('cifar10_resnet20/weights', 'baseline') - cifar('weights'):.2f} points" in PAGE


def test_network_slimming_is_last_and_leaves_four_channels_somewhere():
    found = [r for r in records.read_all(ROOT / "results") if r.experiment.startswith("cifar10_resnet20/")]
    last = min(found, key=lambda r: r.accuracy["finetune"]["last"])
    assert last.experiment == "cifar10_resnet20/slimming"
    assert min(kept for kept, _ in last.channels.values()) == 4
    before = [r.accuracy["prune"]["last"] for r in found if r.channels]
    assert (int(min(before)), int(max(before))) == (16, 24)


def test_imagenette():
    with_admm, without = (accuracy(f"imagenette_resnet50/{name}") for name in ("lp", "no_admm"))
    assert f"{with_admm:.2f} % with Lp-ADMM, {without:.2f} % without" in PAGE
    assert f"The {with_admm - without:.2f} points between them" in PAGE
    assert f"(dense {accuracy('imagenette_resnet50/lp', 'baseline'):.2f} %)" in PAGE


BERT = (ROOT / "docs" / "bert.md").read_text()


TASKS = {"stsb": "STS-B, Spearman", "mrpc": "MRPC, F1", "cola": "CoLA, Matthews", "rte": "RTE, accuracy"}


@pytest.mark.parametrize("task", TASKS)
def test_the_encoders_scores_are_those_of_the_records(task):
    dense = accuracy(f"minilm_glue/{task}_lp", "baseline")
    scores = [accuracy(f"minilm_glue/{task}_{method}") for method in ("lp", "no_admm", "random")]
    cells = [TASKS[task], *(f"{score:.2f}" for score in (dense, *scores, dense - scores[0]))]
    assert f"| {' | '.join(cells)} |" in BERT


def test_the_encoders_differences_are_those_of_the_records():
    ours, plain, chance = (
        {task: accuracy(f"minilm_glue/{task}_{method}") for task in TASKS}
        for method in ("lp", "no_admm", "random")
    )
    text = " ".join(BERT.split())
    ahead = [f"{ours[task] - plain[task]:.2f}" for task in TASKS]
    assert "by {}, {}, {} and {} points".format(*ahead) in text
    assert {task for task in TASKS if chance[task] > plain[task]} == {"stsb", "mrpc", "rte"}
    assert chance["mrpc"] > ours["mrpc"]
    assert f"on MRPC by {chance['mrpc'] - plain['mrpc']:.2f} points" in text
    assert f"on CoLA they are {plain['cola'] - chance['cola']:.2f} below" in text
    before = [accuracy(f"minilm_glue/stsb_{method}", "prune") for method in ("random", "lp", "no_admm")]
    assert "on STS-B {:.2f} for random, {:.2f} and {:.2f} for the other two".format(*before) in text


def test_a_second_seed():
    text = " ".join(BERT.split())
    rows = ("lp", "no_admm", "random")
    first, second = ([accuracy(f"minilm_glue/stsb_{row}", seed=seed) for row in rows] for seed in (0, 1))
    dense = accuracy("minilm_glue/stsb_lp", "baseline", seed=1)
    assert "dense {:.2f}, Lp-ADMM {:.2f}, magnitude {:.2f}, random {:.2f}.".format(dense, *second) in text
    assert f"Random fell by {first[2] - second[2]:.2f} points" in text
    assert f"Lp-ADMM is {first[0] - first[1]:.2f} and {second[0] - second[1]:.2f} points above" in text


@pytest.mark.parametrize(("method", "name"), [("lp", "heads and neurons"), ("heads", "heads alone"),
                                              ("neurons", "neurons alone")])  # fmt: skip
def test_the_price_of_each_half(method, name):
    row = next(line for line in BERT.splitlines() if line.startswith(f"| {name} |"))
    assert row.endswith(f"| {accuracy(f'minilm_glue/cola_{method}'):.2f} |")
    (found,) = [r for r in records.read_all(ROOT / "results") if r.experiment == f"minilm_glue/cola_{method}"]
    heads = [str(kept) for layer, (kept, _) in found.channels.items() if "attention" in layer]
    assert (", ".join(heads) or "12 everywhere") in row
