"""The figures of the pages on speed, sweeps and scale are those that the benchmarks wrote."""

import json
import sys

import pytest

from tests.composing import ROOT

sys.path.append(str(ROOT / "benchmarks"))  # as a script, a benchmark finds the others beside it

import imagenet_cost
from training_step import EPOCH

SPEED, SWEEPS, SCALE = ((ROOT / "docs" / f"{name}.md").read_text() for name in ("speed", "sweeps", "scale"))


def rows(name):
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())["rows"]


def spread(found, digits=2):
    return "{median:.{d}f} ({low:.{d}f}-{high:.{d}f})".format(**found, d=digits)


def test_the_data_are_as_fast_as_the_page_says():
    cifar, share, *_ = rows("data")
    ours, theirs = (cifar[f"{name}_per_second"]["median"] for name in ("ours", "torchvision"))
    assert f"{round(ours, -3):,.0f} images a second from the tensor in memory" in SPEED
    assert f"{round(theirs, -3):,.0f} through torchvision's data set" in SPEED
    assert "**{median:.0f} times** ({low:.1f}-{high:.1f})".format(**cifar["faster"]) in SPEED
    assert f"takes {share['batch_ms']['median']:.1f} ms, {100 * share['share']['median']:.2f} % of a" in SPEED


@pytest.mark.parametrize("row", rows("data")[2:], ids=lambda row: f"{row['workers']} workers")
def test_decoded_once_is_as_fast_as_the_page_says(row):
    streamed, stored = (row[f"{name}_per_second"]["median"] for name in ("streamed", "stored"))
    assert f"| {streamed:.0f} | {stored:.0f} | {spread(row['faster'])} |" in SPEED
    if row["workers"] == 0:
        assert f"{streamed:.0f} images a second, {stored:.0f} where they were decoded once" in SCALE
        assert f"once took {row['made_in_seconds']:.1f} s" in SPEED


@pytest.mark.parametrize("row", rows("training_step"), ids=lambda row: f"{row['way']} {row['precision']}")
def test_a_training_step_is_as_fast_as_the_page_says(row):
    precision = "float32" if row["precision"] == "no" else row["precision"]
    compiling = f"{row['compile_seconds']:.0f} s" if row["compile_seconds"] else ""
    told = (
        f"| {precision} | {row['way']} | {row['images_per_second']['median']:.0f} | {spread(row['ratio'])} |"
    )
    assert f"{told} {compiling} |".replace("  |", " |") in SPEED


@pytest.mark.parametrize("row", rows("side_by_side"), ids=lambda row: str(row["at_once"]))
def test_trainings_side_by_side_do_what_the_page_says(row):
    together = f"{row['images_per_second']['median']:.0f} | {spread(row['ratio'])}"
    assert f"| {row['at_once']} | {row['threads_each']} | {together} |" in SWEEPS


def test_the_rows_of_imagenet_cost_what_the_page_says():
    table = imagenet_cost.rows()
    drops = {0.0, *(row.drop for row in table)}
    found = imagenet_cost.costs(table, {n: dict.fromkeys(drops, 1 / 2470) for n in (1, 8)})
    for part in found:
        name = part["part"].rpartition("/")[2]
        name = f"`{name}`" if "flops" in name else name.replace("all, one seed", "all five")
        name = name.replace("dense, then", "dense network, then")
        assert f"| {name} | {part['epochs']} | {part['hours'][1]:.1f} | {part['hours'][8]:.1f} |" in SCALE
    assert f"worth\n{imagenet_cost.epoch_images():,.0f} images" in SCALE
    assert f"{3 * found[-1]['hours'][1]:.1f} | {3 * found[-1]['hours'][8]:.1f} |" in SCALE


def test_pruned_networks_train_as_much_faster_as_the_page_says():
    steps = {row["drop"]: row["seconds_per_image"]["median"] for row in rows("imagenet_cost")
             if row.get("batch") == imagenet_cost.LARGEST_ON_CPU}  # fmt: skip
    dense = steps.pop(0.0)
    told = ", ".join(f"{dense / seconds:.2f} (of {100 * drop:.1f} %)" for drop, seconds in steps.items())
    assert told in SCALE


@pytest.mark.parametrize("row", rows("freed_memory"), ids=lambda row: row["network"])
def test_memory_that_stays_saves_what_the_page_says(row):
    before, after = (f"{row[f'{kind}_ms']['median']:.0f} ms" for kind in ("given_back", "kept"))
    told = f"{before} | {after} | {spread(row['ratio'])} | {row['given_back_pages']:,.0f} |"
    assert f"| {row['network']}, batch {row['batch']} | {told}" in SPEED


def test_many_records_take_what_the_page_says():
    (row,) = rows("records")
    times = [row[name]["median"] for name in ("tables_warm_s", "tables_one_added_s", "tables_cold_s")]
    assert "{:.0f} s, {:.0f} s with one added since, {:.0f} s without an index".format(*times) in SWEEPS


def test_an_epoch_is_that_of_the_data():
    assert EPOCH == 45_000
