"""The tables of the latency page, and the figures that its text quotes, are those that were measured."""

import json

from benchmarks import render
from benchmarks.timing import RESULTS
from tests.composing import ROOT

PAGE = (ROOT / "docs" / "latency.md").read_text()
TEXT = " ".join(PAGE.split())
CONTENT = json.loads((RESULTS / "latency_targets.json").read_text())
VGG, RESNET50 = "vgg16_cifar10/flops60_cos350", "resnet50_imagenet/flops62_cos150"
BOTH = (RESNET50, "resnet50_imagenet/flops63_step30")
LOWEST = [f"resnet_cifar10/{name}" for name in ("resnet56_flops58_cos350", "resnet110_flops52_cos400")]
HIGHEST = [f"resnet_cifar10/{name}" for name in ("resnet56_flops81_cos300", "resnet110_flops78_cos350")]
BARE, ANY, EIGHTS = "any, not filled up", "any", "multiples of 8"


def row(experiment, variant):
    (found,) = [r for r in CONTENT["rows"] if r["experiment"] == experiment and r["variant"] == variant]
    return found


def share(experiment, variant=ANY, engine="ONNX Runtime"):
    measured = row(experiment, variant)["latency"]
    (found,) = [each["share"] for each in measured if (each["engine"], each["batch"]) == (engine, 32)]
    return f"{100 * found:.0f}"


def line(side, name, experiment, variant=ANY):
    (found,) = [each for each in row(experiment, variant)[side] if each["name"] == name]
    return found


def milliseconds(name, experiment, variant=ANY):
    return "{:.2f} to {:.2f} ms".format(
        *(line(s, name, experiment, variant)["ms"] for s in ("dense", "pruned"))
    )


def test_the_tables_are_those_of_the_measurements():
    assert render.renewed(PAGE, render.blocks(CONTENT)) == PAGE, "python benchmarks/render.py"


def test_the_recommendation_quotes_the_table():
    pair = [(share(each), share(each, BARE)) for each in (VGG, RESNET50)]
    assert "realises {} % of its FLOPs ratio at batch 32 in place of {} %, ".format(*pair[0]) in TEXT
    assert "ResNet-50 {} % in place of {} %.".format(*pair[1]) in TEXT
    rounded, free = ("{} and {} %".format(*(share(each, v) for each in BOTH)) for v in (EIGHTS, ANY))
    assert f"it realises {rounded} at its two rows, without it {free}." in TEXT
    reach = [f"{100 * row(each, EIGHTS)['flops_drop']:.1f} %" for each in BOTH]
    assert "ResNet-50 can then lose {} at most at the first row's, {} at the second's".format(*reach) in TEXT
    lowest, highest, eights = (
        "{} and {} %".format(*(share(each, variant) for each in rows))
        for rows, variant in ((LOWEST, ANY), (HIGHEST, ANY), (LOWEST, EIGHTS))
    )
    assert f"there: {lowest} at the lowest drop of the paper's table, {highest} at the highest" in TEXT
    assert f"({eights} at the lowest drop)" in TEXT
    assert f"({share(RESNET50, engine='PyTorch')} % at batch 32)" in TEXT


def test_the_layers_that_gain_nothing_are_those_of_the_profile():
    dense, pruned = (line(side, "layer1.*.conv1", LOWEST[0]) for side in ("dense", "pruned"))
    assert f"({dense['macs'] / 1e6:.1f} to {pruned['macs'] / 1e6:.1f} million)" in TEXT
    assert f"their time stays ({milliseconds('layer1.*.conv1', LOWEST[0])})" in TEXT
    found = row(LOWEST[0], ANY)
    promised = render.ratio(found)
    total = [sum(each["ms"] for each in found[side]) for side in ("dense", "pruned")]
    missing = (pruned["ms"] - dense["ms"] / promised) / (total[1] - total[0] / promised)
    assert f"This alone is {100 * missing:.0f} % of what this network misses" in TEXT
    assert f"do gain ({milliseconds('layer1.*.conv2', LOWEST[0])})" in TEXT


def test_convolutions_without_the_layout_are_those_of_the_profile():
    convolutions = [each for each in row(VGG, BARE)["pruned"] if each["name"].startswith("features")]
    without = [each for each in convolutions if not each["blocked"]]
    assert f"{len(without)} convolutions without it of {len(convolutions)}" in TEXT
    width = row(VGG, BARE)["widths"].split()[0]
    assert f"64 to {width} channels, {milliseconds('features.3', VGG, BARE)}" in TEXT
    assert all(each["blocked"] for each in row(VGG, ANY)["pruned"] if each["name"].startswith("features"))


def test_untouched_layers_weigh_what_the_table_says():
    head, _, cells = (
        [cell.strip() for cell in each.strip("|").split("|")]
        for each in render.gaps([row(RESNET50, ANY)]).splitlines()
    )
    found = dict(zip(head, cells, strict=True))
    assert (
        f"keep their multiply-adds, {found['untouched layers']} of the pruned network's time too many" in TEXT
    )
    assert float(found["smaller layers"].removesuffix(" %")) <= 5  # "nearly as fast as promised"
