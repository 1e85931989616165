"""What older code measured, what other data gave, and what diverged: none of it passes for a result."""

from __future__ import annotations

import csv
import io
import shlex

import pytest
import synthetic
from hydra.core.override_parser.overrides_parser import OverridesParser

from lpslim.base import files
from lpslim.experiment import records
from lpslim.experiment.statistics import Summary
from lpslim.experiment.versions import RULE, VERSIONS
from reproduce import figures, provenance, published, tables
from reproduce.claims import claim
from reproduce.evidence import Evidence
from reproduce.groups import dense_networks, grouped, sparsified
from reproduce.labels import labels
from reproduce.lines import counted, measured_blocks, paper_lines
from reproduce.markup import Missing, csv_table

NAME = "vgg16_cifar10/flops60_cos350"  # published: 94.36
OTHER_COST = {"rule": "counted on fingers", "flops_drop": 1.0, "params_drop": 2.0}
VERDICT = "Verdict, or what fills it"


@pytest.fixture
def newer(monkeypatch):
    """The code of the sparsify stage has changed since version 1."""
    monkeypatch.setitem(VERSIONS, "sparsify", 2)
    return {"versions": {"baseline": 1, "sparsify": 2}}


def row_of(found, outdated=False):
    """Return the lines of the row NAME, as the table shows them."""
    shown, _ = provenance.sift(found, outdated)
    lines = paper_lines("vgg16_cifar10", Evidence(shown), "last")
    return [line for line in lines if line["Top-1 (%), published"] == "94.36"]


# Outdated records


def test_a_record_of_todays_code_is_current():
    assert provenance.outdated(synthetic.record()) == ""
    assert provenance.outdated(synthetic.record(versions={"baseline": 1, "sparsify": 1})) == ""


def test_a_record_is_outdated_by_its_code_or_its_rule(newer):
    old = synthetic.record()
    assert provenance.outdated(old) == "sparsify by code version 1, which is now 2"
    assert provenance.outdated(synthetic.record(**newer)) == ""
    counted_otherwise = synthetic.record(**newer, cost=OTHER_COST)
    assert provenance.outdated(counted_otherwise) == "counted by another rule: counted on fingers"
    assert provenance.outdated(synthetic.record(cost=OTHER_COST)) == (
        "sparsify by code version 1, which is now 2; counted by another rule: counted on fingers"
    )
    assert provenance.outdated(old, ("baseline",)) == ""  # its dense network is what it would be today


def test_widths_are_scores(monkeypatch):
    stages = {"baseline": "1" * 16, "widths": "2" * 16}
    assert provenance.outdated(synthetic.record(stages=stages)) == ""
    monkeypatch.setitem(VERSIONS, "score", 2)
    assert provenance.outdated(synthetic.record(stages=stages)) == "widths by code version 1, which is now 2"


def test_outdated_records_are_left_out_and_listed(newer):
    found = [*synthetic.seeds(NAME, [90.0, 91.0]), synthetic.record(NAME, 2, final=94.4, **newer)]
    shown, remarks = provenance.sift(found, False)
    assert shown == found[2:]
    assert remarks == [
        f"Outdated and left out (--outdated shows them): {NAME}, seed 0,1 (sparsify by code version 1, which "
        f"is now 2). To measure again: python run.py -m experiment={NAME} seed=0,1"
    ]
    (line,) = row_of(found)
    assert line["Top-1 (%), measured"] == Summary(94.4, None, 1)
    assert line[VERDICT] == "within"


def test_outdated_records_that_are_asked_for_are_marked_and_never_averaged_or_compared(newer):
    found = [*synthetic.seeds(NAME, [90.0, 91.0]), synthetic.record(NAME, 2, final=94.4, **newer)]
    old, new = row_of(found, outdated=True)
    assert (old["Method"], new["Method"]) == ("ours †", "ours")
    assert old["Top-1 (%), measured"].mean == 90.5
    assert old["Difference"] is None
    assert old[VERDICT] == "† not comparable: sparsify by code version 1, which is now 2"
    assert new["Top-1 (%), measured"] == Summary(94.4, None, 1)
    assert new[VERDICT] == "within"  # the outdated one is no second configuration
    _, remarks = provenance.sift(found, True)
    assert remarks[0].startswith(f"† Outdated: {NAME}, seed 0,1 (")


def test_the_drops_of_an_outdated_record_are_not_compared_either(newer):
    rows = published.read("vgg16_cifar10")
    row = next(each for each in rows if each.experiment == NAME)
    for found, difference in (({}, None), (newer, pytest.approx(0.0))):  # published: 60.6
        (one,) = claim(row, "flops_drop", rows, Evidence([synthetic.record(NAME, **found)]), "last").measured
        assert one.difference == difference


def test_a_dense_network_is_outdated_by_its_own_stage_alone(newer, monkeypatch):
    dense = paper_lines("vgg16_cifar10", Evidence([synthetic.record(NAME)]), "last")[0]
    assert (dense["Method"], dense[VERDICT]) == ("VGG-16", "within")
    monkeypatch.setitem(VERSIONS, "baseline", 2)
    dense = paper_lines("vgg16_cifar10", Evidence([synthetic.record(NAME)]), "last")[0]
    assert dense["Method"] == "VGG-16 †"
    assert dense[VERDICT] == "† not comparable: baseline by code version 1, which is now 2"


def test_a_new_result_of_the_same_seed_may_stand_beside_the_outdated(newer):
    found = [synthetic.record(key="1" * 16), synthetic.record(key="2" * 16, **newer)]
    (block,) = measured_blocks(Evidence(found), "last").values()
    assert [line["Method"] for line in block] == ["Lp p=5, M=1", "Lp p=5, M=1 †"]


def test_outdated_groups_have_distinct_names(newer):
    codes = ({"baseline": 1, "sparsify": 1}, {"baseline": 3, "sparsify": 1})
    found = [synthetic.record(key=str(i) * 16, versions=code) for i, code in enumerate(codes)]
    found += [synthetic.record(key="9" * 16, versions=codes[1], cost=OTHER_COST)]
    assert labels(grouped(found)) == [
        f"Lp p=5, M=1, code 1/1, counted: {RULE} †",
        f"Lp p=5, M=1, code 3/1, counted: {RULE} †",
        "Lp p=5, M=1, code 3/1, counted: counted on fingers †",
    ]


def test_stages_of_different_code_are_different_networks(newer):
    found = [synthetic.record(key="1" * 16), synthetic.record(key="2" * 16, **newer)]
    assert len(dense_networks(found)) == 1
    assert len(sparsified(found)) == 2


def test_the_row_of_an_outdated_record_is_not_counted_as_measured(newer):
    def vgg(found):
        return counted(Evidence(found), "last")[0]

    assert vgg([synthetic.record(NAME)]) == "VGG-16 on CIFAR-10: 0 of 7 rows measured as configured."
    assert vgg([synthetic.record(NAME, **newer)]) == "VGG-16 on CIFAR-10: 1 of 7 rows measured as configured."


@pytest.mark.parametrize(
    ("differs", "expected"),
    [
        ({}, ""),
        ({"epoch_scale": [1.0, 0.05], "M": [1.0, None]}, " epoch_scale=0.05 M=null"),
        ({"trainer.compile": [False, True]}, " trainer.compile=true"),
        ({"protected": [[], ["layer3.*"]]}, """ 'protected=["layer3.*"]'"""),
        ({"criterion.name": ["magnitude", "fpgm"], "work_dir": ["a", "b"]}, " criterion.name=fpgm"),
        ({"model.weights": [None, "a b;$(c)'.pt"]}, None),
    ],
)
def test_the_command_measures_the_same_again(newer, differs, expected):
    _, (remark,) = provenance.sift([synthetic.record(NAME, differs=differs)], False)
    command = remark.partition("To measure again: ")[2]
    if expected is not None:
        assert command == f"python run.py experiment={NAME}{expected} seed=0"
    words = shlex.split(command)[2:]
    parsed = {o.key_or_group: o.value() for o in OverridesParser.create().parse_overrides(words)}
    for key, (_, ours) in differs.items():
        if key != "work_dir":
            value = parsed[key]
            assert getattr(value, "text", value) == ours


def test_what_no_file_describes_names_no_command(newer):
    _, (remark,) = provenance.sift([synthetic.record()], False)
    assert remark.endswith("There is no experiment file of this name: its settings are in the record")
    assert "python" not in remark


def test_tables_say_what_they_leave_out(newer, tmp_path, capsys):
    old = synthetic.record(NAME, final=91.11)
    results = synthetic.write(tmp_path, old, synthetic.record("vgg16_cifar10/flops66_cos350", M=2.0, **newer))
    assert tables.main(["--results", str(results)]) == 0
    printed = capsys.readouterr().out
    vgg = (results / "tables/table_vgg16_cifar10.md").read_text()
    measured = (results / "tables/measured.md").read_text()
    for text in (printed, vgg, measured):
        assert f"- Outdated and left out (--outdated shows them): {NAME}, seed 0" in text
        assert "91.11" not in text
        assert "†" not in text
    assert "Outdated" not in (results / "tables/table_bert_glue.md").read_text()
    assert "91.11" not in (results / "tables/measured.csv").read_text()

    assert tables.main(["--results", str(results), "--outdated"]) == 0
    for text in (capsys.readouterr().out, (results / "tables/table_vgg16_cifar10.md").read_text()):
        assert "91.11 (n=1)" in text
        assert f"- † Outdated: {NAME}, seed 0" in text
    assert "Lp p=5, M=1 †" in (results / "tables/measured.csv").read_text()
    assert "ours †" in (results / "tables/table_vgg16_cifar10.csv").read_text()
    assert "Lp p=5, M=1 †" in (results / "tables/measured.tex").read_text()


def test_a_table_of_nothing_but_outdated_records_says_so(newer, tmp_path, capsys):
    results = synthetic.write(tmp_path, synthetic.record(NAME))
    assert tables.main(["--results", str(results)]) == 0
    assert "Nothing is measured yet." in capsys.readouterr().out
    assert "Outdated and left out" in (results / "tables/measured.md").read_text()


# Two data sets under one name

OTHER_JPEG = {**synthetic.JPEG, "fingerprint": "d" * 64}


def test_data_are_disputed_only_under_the_same_name_source_and_settings():
    same = [synthetic.record(data=synthetic.JPEG), synthetic.record(seed=1, data=OTHER_JPEG)]
    assert provenance.disputed(same) == {"b" * 64, "d" * 64}
    assert provenance.disputed([synthetic.record(), synthetic.record(data=synthetic.JPEG)]) == frozenset()
    larger = [
        synthetic.record(data=synthetic.DIGITS),
        synthetic.record(data={**synthetic.DIGITS, "fingerprint": "e" * 64}, **{"dataset.image_size": 64}),
    ]
    assert provenance.disputed(larger) == frozenset()
    flipped = [same[0], synthetic.record(data=OTHER_JPEG, **{"dataset.flip": True, "dataset.root": "x"})]
    assert provenance.disputed(flipped) == {"b" * 64, "d" * 64}  # no matter how they are augmented


def test_disputed_data_are_two_lines_and_not_compared():
    runs = [*synthetic.seeds(NAME, [83.4, 83.6], data=synthetic.JPEG, dense=83.0)]
    runs += [synthetic.record(NAME, 2, final=80.0, data=OTHER_JPEG, dense=83.0)]
    one, other = row_of(runs)
    assert one["Top-1 (%), measured"].n == 2
    assert other["Top-1 (%), measured"] == Summary(80.0, None, 1)
    assert one["Measured on"] == "image folder cifar10_jpeg ‡ bbbbbbbb"
    assert other["Measured on"] == "image folder cifar10_jpeg ‡ dddddddd"
    assert [line[VERDICT] for line in (one, other)] == ["not comparable: different data under one name"] * 2
    assert [line["Difference"] for line in (one, other)] == [None, None]
    assert provenance.disputes(runs) == [
        "‡ Different data are called cifar10, image folder cifar10_jpeg: bbbbbbbb, dddddddd. They are not "
        "averaged, and neither is compared with a published figure."
    ]


def test_even_the_original_data_are_not_compared_when_two_claim_to_be_them():
    runs = [synthetic.record(NAME, data={**synthetic.ORIGINAL, "fingerprint": each * 64}) for each in "ae"]
    for row in ("VGG-16", "ours"):
        rows = published.read("vgg16_cifar10")
        cell = next(r for r in rows if r.method == row and (row != "ours" or r.experiment == NAME))
        verdicts = [each.verdict for each in claim(cell, "top1", rows, Evidence(runs), "last").measured]
        assert verdicts == ["not comparable: different data under one name"] * 2
    drawn = figures.figures(runs, "last")["accuracy_vs_flops_cifar10_vgg16"]
    assert [axes.get_title() for axes in drawn.axes] == [
        "data: as published",
        "data: torchvision batches ‡ aaaaaaaa",
        "data: torchvision batches ‡ eeeeeeee",
    ]
    assert not [name for name in drawn.axes[0].get_legend_handles_labels()[1] if "published" not in name]


def test_methods_on_disputed_data_are_marked_under_the_same_roof(tmp_path):
    runs = [synthetic.record(data=synthetic.JPEG), synthetic.record(M=None, data=OTHER_JPEG)]
    (block,) = measured_blocks(Evidence(runs), "last").values()
    assert [line["Measured on"][-10:] for line in block] == ["‡ bbbbbbbb", "‡ dddddddd"]
    files, _ = tables.documents(runs, "last")
    for name in ("measured.md", "table_vgg16_cifar10.md"):
        assert "- ‡ Different data are called cifar10, image folder cifar10" in files[name]
    assert "‡" not in files["table_bert_glue.md"]
    drawn = figures.figures(runs, "last")["accuracy_vs_flops_cifar10_vgg16"]
    titles = [axes.get_title().replace("\n", " ") for axes in drawn.axes]
    assert titles[1:] == [f"data: image folder cifar10_jpeg ‡ {each * 8}" for each in "bd"]


def test_a_fingerprint_of_file_names_is_told_by_its_hash():
    assert provenance.short("listing:0123456789abcdef") == "01234567"
    assert provenance.short("0123456789abcdef") == "01234567"


# Runs that diverged


def lost(seed=0, stage="finetune", epoch=3, experiment=NAME, **changes):
    """Make the record of a run that diverged at ``stage``."""
    whole = synthetic.record(experiment, seed, **changes)
    order = ("baseline", "prune", "finetune")
    before = order[: order.index(stage)] if stage in order else ("baseline",)
    pruned = stage == "finetune"
    return synthetic.record(
        experiment, seed, **changes,
        diverged={"stage": stage, "epoch": epoch, "step": 7, "loss": "nan"},
        accuracy={each: whole.accuracy[each] for each in before},
        curves={each: whole.curves[each] for each in before if each in whole.curves},
        cost=whole.cost if pruned else {"rule": RULE},
        channels=whole.channels if pruned else {},
        convergence=whole.convergence if pruned else [],
    )  # fmt: skip


def test_seeds_that_diverged_are_counted_but_in_no_mean():
    found = [*synthetic.seeds(NAME, [94.0, 94.6]), lost(2)]
    (line,) = row_of(found)
    value = line["Top-1 (%), measured"]
    assert value == Summary(pytest.approx(94.3), pytest.approx(0.6 / 2**0.5), 2, diverged=1)
    assert value.text() == "94.30 (n=2) (+1 diverged)"
    assert line["FLOPs drop (%), measured"].n == 2
    assert line[VERDICT] == "within"
    (block,) = measured_blocks(Evidence(found), "last").values()
    assert block[0]["Fine-tuned (%)"] == value
    assert block[0]["Dense (%)"] == Summary(94.0, 0.0, 2)
    assert counted(Evidence(found), "last")[0].endswith("1 of 7 rows measured as configured.")


def test_a_configuration_that_always_diverged_says_where():
    found = [lost(0), lost(1)]
    (line,) = row_of(found)
    assert line["Top-1 (%), measured"] == Missing("diverged (finetune, epoch 3)")
    assert line["FLOPs drop (%), measured"] == Missing("diverged")
    assert (line["Difference"], line[VERDICT]) == (None, "no run ended")
    (block,) = measured_blocks(Evidence(found), "last").values()
    assert block == [
        {
            "Method": "Lp p=5, M=1",
            "Dense (%)": Missing("diverged"),
            "Pruned, before fine-tuning (%)": Missing("diverged"),
            "Fine-tuned (%)": Missing("diverged (finetune, epoch 3)"),
            "Drop from dense (points)": Missing("diverged"),
            "FLOPs drop (%)": Missing("diverged"),
            "Params drop (%)": Missing("diverged"),
            "Epochs: dense / sparsify / fine-tune": "3 / - / -",
            "Measured on": "torchvision batches",
        }
    ]
    assert counted(Evidence(found), "last")[0].endswith("0 of 7 rows measured as configured.")


def test_every_place_where_runs_diverged_is_named_once():
    runs = [lost(0), lost(1, "baseline", 1), lost(2)]
    (group,) = grouped(runs)
    assert group.fate == "diverged (finetune, epoch 3; baseline, epoch 1)"
    assert (group.records, len(group.diverged)) == ((), 3)


def test_the_dense_network_of_a_run_that_diverged_is_in_no_mean_either():
    rows = published.read("vgg16_cifar10")
    found = [synthetic.record(NAME, dense=94.0), lost(1, dense=80.0)]
    (one,) = claim(rows[0], "top1", rows, Evidence(found), "last").measured
    assert one.value == Summary(94.0, None, 1)
    assert claim(rows[0], "top1", rows, Evidence(found[1:]), "last").empty == "measured with any of its rows"
    assert sparsified(found[1:]) == dense_networks(found[1:]) == []


def test_runs_with_other_settings_that_diverged_stand_on_their_line():
    found = [lost(0, "baseline", 2, differs={"epoch_scale": [1, 9]}, epoch_scale=9.0)]
    lines = paper_lines("vgg16_cifar10", Evidence(found), "last")
    (line,) = (each for each in lines if each["Method"] == "ours, other settings")
    assert line["Top-1 (%), measured"] == Missing("diverged (baseline, epoch 2)")
    assert line[VERDICT] == "not this row's configuration: epoch_scale=9"


@pytest.mark.parametrize("stage", ["baseline", "sparsify", "finetune"])
def test_every_renderer_copes_with_runs_that_diverged(tmp_path, monkeypatch, stage):
    monkeypatch.setattr(figures, "FORMATS", {"svg": figures.FORMATS["svg"]})
    results = synthetic.write(tmp_path / "mixed", synthetic.record(NAME), lost(1, stage))
    assert tables.main(["--results", str(results)]) == 0
    assert figures.main(["--results", str(results)]) == 0
    alone = synthetic.write(tmp_path / "alone", lost(1, stage))
    assert tables.main(["--results", str(alone)]) == 0
    assert figures.main(["--results", str(alone)]) == 0
    assert not list(alone.rglob("*.svg"))
    assert f"diverged ({stage}, epoch 3)" in (alone / "tables/measured.tex").read_text()
    clean = synthetic.write(tmp_path / "clean", synthetic.record(NAME))
    assert figures.main(["--results", str(clean)]) == 0
    for path in (clean / "figures").iterdir():
        assert path.read_bytes() == (results / "figures" / path.name).read_bytes()


def test_csv_has_a_column_of_how_many_diverged_only_where_some_did():
    lines = [
        {"a": Summary(1.5, 0.5, 3, diverged=2), "b": Summary(2.0, None, 1)},
        {"a": Missing("x"), "b": None},
    ]
    rows = list(csv.reader(io.StringIO(csv_table(lines))))
    assert rows == [
        ["a", "a sd", "a n", "a diverged", "b", "b sd", "b n"],
        ["1.5", "0.5", "3", "2", "2.0", "", "1"],
        ["x", "", "", "", "", "", ""],
    ]


def test_the_frame_says_what_diverged_and_has_no_numbers_for_it():
    frame = records.frame([synthetic.record(), lost(1, "baseline")])
    assert list(frame["diverged"]) == ["", "baseline"]
    numbers = ["flops_drop", "params_drop", "pruned_accuracy", "finetune_last", "baseline_last"]
    assert frame[numbers].isna().to_numpy().tolist() == [[False] * 5, [True] * 5]


# Files are whole, or not there


@pytest.mark.parametrize(("main", "folder"), [(tables.main, "tables"), (figures.main, "figures")])
def test_a_renderer_that_is_stopped_leaves_the_files_of_before(tmp_path, monkeypatch, main, folder):
    results = synthetic.write(tmp_path, synthetic.record(NAME))
    main(["--results", str(results)])
    before = {path.name: path.read_bytes() for path in (results / folder).iterdir()}
    synthetic.write(tmp_path, synthetic.record(NAME, 1, final=10.0))

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(store.os, "replace", stopped)  # all is written but nothing in place
    with pytest.raises(KeyboardInterrupt):
        main(["--results", str(results)])
    assert before == {path.name: path.read_bytes() for path in (results / folder).iterdir()}


def test_a_figure_of_before_is_named(tmp_path, capsys):
    results = synthetic.write(tmp_path, synthetic.record(NAME))
    for name in ("channels_old_net.svg", "notes.svg"):
        store.write_text(results / "figures" / name, "x")
    figures.main(["--results", str(results)])
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"- {results}/figures/channels_old_net.svg is of before: no record gives it now"
    assert (results / "figures/channels_old_net.svg").exists()


def test_figures_draw_what_is_outdated_only_when_asked_and_with_a_mark(newer, tmp_path, monkeypatch, capsys):
    found = [synthetic.record(NAME), synthetic.record(NAME, 1, M=2.0, **newer)]
    plain = figures.figures(found, "last")["residuals_cifar10_vgg16"]
    marked = figures.figures(found, "last", True)["residuals_cifar10_vgg16"]
    assert [t.get_text() for t in plain.legends[0].get_texts()] == ["Lp p=5, M=2"]
    assert [t.get_text() for t in marked.legends[0].get_texts()] == ["Lp p=5, M=1 †", "Lp p=5, M=2"]
    assert "†" not in plain.get_suptitle()
    assert "† measured by older code" in marked.get_suptitle()
    monkeypatch.setattr(figures, "FORMATS", {"svg": figures.FORMATS["svg"]})
    figures.main(["--results", str(synthetic.write(tmp_path, found[0]))])
    out = capsys.readouterr().out
    assert out.startswith("- Outdated and left out")
    assert not list(tmp_path.rglob("*.svg"))
