"""The rows that are timed are the paper's, pruned as far; how fast anything is, is not tested."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import latency_targets, pairs, render
from benchmarks.latency_targets import TARGETS, Target
from lpslim import selection
from lpslim.errors import UserError
from reproduce.published import number

SMALL = next(each for each in TARGETS if "resnet56_flops58" in each.experiment)


@pytest.mark.parametrize("target", TARGETS, ids=lambda each: each.experiment)
def test_a_target_is_a_published_row(target):
    config = latency_targets.composed(target.experiment)
    row = latency_targets.row_of(target.experiment)
    if config.target_flops:
        assert config.target_flops == pytest.approx(number(row.cells["flops_drop"]) / 100)
    else:
        assert config.target_params == 1e6 * number(row.place["params_millions"])


@pytest.mark.parametrize("target", TARGETS[:6], ids=lambda each: each.experiment)
def test_both_printed_drops_are_met(target):
    cells = latency_targets.row_of(target.experiment).cells
    found = latency_targets.plan(target)
    flops_drop, params_drop = found.drops(found.kept(1))
    assert flops_drop == pytest.approx(float(cells["flops_drop"]) / 100, abs=selection.TOLERANCE)
    assert params_drop == pytest.approx(float(cells["params_drop"]) / 100, abs=0.005)


def test_widths_are_rounded_and_floors_are_the_end():
    found = latency_targets.plan(SMALL)
    eights = [len(kept) for kept in found.kept(8).values()]
    assert {width % 8 for width in eights} == {0}
    assert found.drops(found.kept(8))[0] == pytest.approx(found.config.target_flops, abs=0.02)
    widths = [len(kept) for kept in found.kept(16).values()]
    assert widths == [16] * 27  # one block of 16 channels in every layer is still too much
    assert found.drops(found.kept(16))[0] < found.config.target_flops


def test_berts_dense_network_is_built_without_a_hub():
    target = TARGETS[-1]
    network = latency_targets.dense(latency_targets.composed(target.experiment), target)
    with torch.device("meta"):
        model = network.build()
    assert sum(each.numel() for each in model.parameters()) / 1e6 == pytest.approx(109, abs=1)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Measure one small row as the command does, in no time; return the file."""
    threads, file = torch.get_num_threads(), tmp_path_factory.mktemp("targets") / "targets.json"
    large = Target("bert_glue/sst2", (3, 128), 2, large=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "ROUND", 0.0)
        patch.setattr(latency_targets, "BATCH", 2)
        patch.setattr(latency_targets, "TARGETS", (SMALL, large))
        assert latency_targets.main(["--quick", "--threads", "1", "--json", str(file)]) == 0
    torch.set_num_threads(threads)
    return file


def test_what_is_measured_is_written_and_rendered(measured, tmp_path):
    content = json.loads(measured.read_text())
    assert content["machine"]["onnxruntime"]
    rows = content["rows"]
    assert [row["variant"] for row in rows] == ["any, not filled up", "any", "multiples of 8"]
    engines = [[each["engine"] for each in row["latency"]] for row in rows]
    assert engines == [["ONNX Runtime"], ["ONNX Runtime", "PyTorch"], ["ONNX Runtime", "PyTorch"]]
    for row in rows:
        ratio = row["latency"][0]["flops_ratio"]
        assert render.ratio(row) == pytest.approx(ratio) == pytest.approx(1 / (1 - row["flops_drop"]))
    blocked = [sum(each["blocked"] for each in row["pruned"]) for row in rows]
    assert blocked[0] <= blocked[1]  # on a processor without the layout none is

    page = tmp_path / "page.md"
    names = ("machine", "speed", "gaps", "layers")
    page.write_text("".join(f"<!-- {name}:begin -->\nformer\n<!-- {name}:end -->\n" for name in names))
    assert render.main(["--json", str(measured), "--page", str(page)]) == 0
    text = page.read_text()
    assert "former" not in text
    assert text.count("| resnet56, 58.6 % ") == 4  # two variants in two tables
    assert "**resnet56, 58.6 %; widths: any**" in text
    assert "| layer1.\\*.conv1 (9)" in text


def test_a_page_without_marks_is_refused(measured, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("nothing\n")
    assert render.main(["--json", str(measured), "--page", str(page)]) == 2
    assert "must have the lines <!-- machine:begin -->" in capsys.readouterr().err
    assert page.read_text() == "nothing\n"


def line(name, ms, *, macs=0, is_layer=False, count=1, blocked=0):
    return {"name": name, "is_layer": is_layer, "count": count, "macs": macs, "ms": ms, "blocked": blocked}


def test_what_is_missing_adds_up_to_the_gap():
    row = {"network": "x", "variant": "any", "flops_drop": 0.5}
    layer = {"macs": 10, "is_layer": True}
    row["dense"] = [line("a", 4.0, **layer), line("b", 4.0, **layer), line("Add", 2.0)]
    row["pruned"] = [line("a", 4.0, **layer), line("ReorderInput", 1.0), line("Add", 2.0)]
    row["pruned"].append(line("b", 1.0, macs=0, is_layer=True))
    cells = [cell.strip() for cell in render.gaps([row]).splitlines()[2].strip("|").split("|")]
    # 8 ms in place of 5: 2 in a, -1 in b, 1 of reordering, 1 of additions
    assert cells == ["x, 50.0 %", "any", "38 %", "25 %", "-12 %", "12 %", "12 %", "0 %", "0 %"]
    with pytest.raises(UserError, match="once each"):
        render.renewed("", iter([("speed", "text")]))
