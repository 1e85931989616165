"""What the benchmarks measure with: bytes against sums by hand, ratios against pairs that are known."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import timing
from benchmarks.timing import Spread

KILOBYTE = 256  # entries of float32


def test_peak_is_the_most_that_was_alive_at_once():
    def work() -> None:
        a = torch.zeros(4 * KILOBYTE)
        b = a + 1
        del a
        c = b[:10]  # a view is nothing new
        d = torch.cat((b, b))  # the most: b and twice b
        del b, c, d
        torch.ones(KILOBYTE)

    assert timing.peak_bytes(work) == 12 * 1024


def test_what_was_there_before_and_what_is_changed_in_place_do_not_count():
    before = torch.zeros(KILOBYTE)
    assert timing.peak_bytes(lambda: before.add_(1).mul_(2)) == 0


def test_what_autograd_keeps_counts():
    w = torch.zeros(KILOBYTE, requires_grad=True)
    kept = timing.peak_bytes(lambda: (w.exp().exp().sum()).backward())
    assert kept >= 2 * 1024  # both results are needed by the backward


def test_bytes_of_storages_are_counted_once():
    a = torch.zeros(KILOBYTE)
    assert timing.nbytes([a, a[:3], a.view(16, -1), torch.zeros(2)]) == 1024 + 8


def test_works_take_turns_and_none_is_always_first():
    calls: list[str] = []
    works = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    times = timing.in_turn(works, rounds=3, warm=1)
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab"
    assert {name: len(taken) for name, taken in times.items()} == {"a": 3, "b": 3, "c": 3}


def test_ratios_are_taken_round_by_round():
    times = {"one": [1.0, 10.0, 100.0], "other": [2.0, 30.0, 400.0]}
    assert timing.ratio(times, "other", over="one") == Spread(3.0, 2.5, 3.5, 3)


@pytest.mark.parametrize(("values", "expected"), [([4.0], (4, 4, 4, 1)), ([1, 2, 3, 4, 5], (3, 2, 4, 5))])
def test_spread(values, expected):
    assert Spread.of(values) == Spread(*expected)


def test_what_is_written_says_on_what_it_was_measured(tmp_path: Path):
    options = SimpleNamespace(json=tmp_path / "results" / "x.json", quick=True)
    timing.write(options, timing.machine(), [{"name": "a", "ratio": Spread(1.0, 0.9, 1.1, 5)}])
    content = json.loads(options.json.read_text())
    assert {"processor", "cores", "threads", "torch", "load_average"} <= set(content["machine"])
    assert content["rows"] == [{"name": "a", "ratio": {"median": 1.0, "low": 0.9, "high": 1.1, "rounds": 5}}]
