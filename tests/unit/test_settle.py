"""What is left open is settled by what was measured, once; what does not work gives way and says why."""

import json
import logging
from types import SimpleNamespace

import pytest
import torch

from lpslim import lookup, settle, speed
from lpslim.cli import checked
from lpslim.errors import UserError
from lpslim.plan import plan
from lpslim.settle import Ahead, settled
from lpslim.speed import Speed
from tests.composing import composed

CL, NCHW = "channels_last, eager", "contiguous, eager"
CL_C, NCHW_C, CL_G = (
    "channels_last, compiled",
    "contiguous, compiled",
    "channels_last, compiled with CUDA graphs",
)
EVEN = {CL: Speed(100), NCHW: Speed(100), CL_C: Speed(100), NCHW_C: Speed(100)}
FAULT = "no compiler, it says"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A machine of known speed: how to settle on it, with overrides, and what was measured there."""
    place = SimpleNamespace(rates=dict(EVEN), measured=[], fault="", device="cpu")

    def measured(config, data):
        name = settle.name(config.trainer)
        place.measured.append(name)
        if isinstance(found := place.rates[name], Exception):
            raise found
        return found

    def go(*overrides):
        words = ("model=vgg_small", "dataset=digits", "trainer=auto", *overrides, f"work_dir={tmp_path}/work")
        config = checked(composed(*words))
        data = lookup.find("data", config.dataset.source).load(config.dataset, tmp_path / "data")
        return settled(config, data)

    monkeypatch.setattr(speed, "measured", measured)
    monkeypatch.setattr(speed, "compile_fault", lambda *_: place.fault)
    monkeypatch.setattr(speed, "circumstances", lambda *_: {"device": place.device})
    monkeypatch.setattr(
        settle, "make_accelerator", lambda _: SimpleNamespace(device=torch.device(place.device))
    )
    place.settled = go
    place.files = lambda: sorted((tmp_path / "work" / "trainer").glob("*.json"))
    return place


def chosen(config):
    return settle.name(config.trainer)


LONG = ("baseline.epochs=1000", "finetune.epochs=1000")  # 1294 images: 7 hours at 100 a second


@pytest.mark.parametrize(
    ("rates", "expected", "beside"),
    [
        ({}, CL, "contiguous, eager 100; channels_last, compiled 100"),
        ({NCHW: Speed(104)}, CL, "contiguous, eager 104"),
        ({NCHW: Speed(120)}, NCHW, "channels_last, eager 100; contiguous, compiled 100"),
        ({CL_C: Speed(200, 60)}, CL_C, "contiguous, eager 100"),
        ({CL_C: Speed(200, 9000)}, CL, "compiled 200, but 3 compilations of 9000 s take longer"),
        ({CL: torch.OutOfMemoryError("CUDA")}, NCHW, "channels_last, eager: out of memory"),
        ({CL_C: RuntimeError("cannot lower\nthis")}, CL, "channels_last, compiled: cannot lower;"),
    ],
)  # fmt: skip
def test_the_fastest_is_taken_if_it_is_clearly_faster_over_the_whole_run(
    rates, expected, beside, here, capsys
):
    here.rates |= rates
    assert chosen(here.settled(*LONG)) == expected
    said = capsys.readouterr().out
    assert said.startswith(f"trainer: {expected}: ")
    assert beside in said.replace(")", ";")
    assert said.count("\n") == 1


def test_all_three_are_settled_and_the_keys_are_those_of_the_settings_without_auto(here):
    config = here.settled()
    assert (config.trainer.channels_last, config.trainer.compile, config.trainer.cuda_graphs) == (
        True,
        False,
        False,
    )
    data = SimpleNamespace(fingerprint="f" * 64, reading={})
    plain = plan(checked(composed("model=vgg_small", "dataset=digits")), data)
    assert {n: s.key for n, s in plan(config, data).items()} == {n: s.key for n, s in plain.items()}


def test_the_same_command_decides_the_same_without_measuring(here, capsys):
    here.rates[NCHW] = Speed(130)
    first = here.settled(*LONG)
    here.rates = dict.fromkeys(EVEN, Speed(1.0))
    here.measured.clear()
    capsys.readouterr()
    assert here.settled(*LONG) == first
    assert here.measured == []
    assert f"from {here.files()[0].parent}" in (said := capsys.readouterr().out)
    assert said.endswith(".json; delete it to measure anew\n")


def test_methods_with_and_without_the_admm_decide_alike(here):
    """On the edge: one more compiled network, or one more epoch, would decide otherwise."""
    samples = 1294 * 2000
    here.rates[CL_C] = Speed(200, (samples / 100 / 1.06 - samples / 200) / 3)
    assert {chosen(here.settled(*LONG, f"method={m}")) for m in ("no_admm", "lp", "chip")} == {CL_C}


@pytest.mark.parametrize("harm", ["{", "{}", '{"asked": {}, "rows": {}}', None, "NaN"])
def test_a_file_that_is_not_what_was_written_is_measured_anew(harm, here, caplog):
    first = here.settled(*LONG)
    for file in here.files():
        content = json.loads(file.read_text())
        content["rows"][CL]["per_second"] = -1
        file.write_text(harm or json.dumps(content))
    here.measured.clear()
    assert here.settled(*LONG) == first
    assert set(here.measured) >= {CL, NCHW, CL_C}
    assert "measured anew" in caplog.text
    here.measured.clear()
    here.settled(*LONG)
    assert here.measured == []


def test_what_is_given_is_not_measured(here):
    assert chosen(here.settled("trainer.channels_last=false", *LONG)) == NCHW
    assert set(here.measured) == {NCHW, NCHW_C}
    here.measured.clear()
    here.rates[NCHW_C] = Speed(200)
    assert chosen(here.settled("trainer.compile=true", *LONG)) == NCHW_C
    assert here.measured == [CL_C, NCHW_C]


def test_nothing_is_compiled_for_a_training_of_seconds(here, capsys):
    here.settled("debug=tiny")
    assert here.measured == [CL, NCHW]
    assert "compiled: not tried, for 26 s of training" in capsys.readouterr().out


def test_where_nothing_compiles_it_says_so_and_the_rest_is_settled(here, capsys):
    here.fault = FAULT
    here.rates[NCHW] = Speed(150)
    assert chosen(here.settled(*LONG)) == NCHW
    assert f"torch.compile does not work here ({FAULT})" in capsys.readouterr().out


def test_cuda_graphs_are_tried_on_cuda_in_the_better_layout(here):
    here.device, here.rates[CL_G] = "cuda", Speed(300, 60)
    config = here.settled(*LONG)
    assert chosen(config) == CL_G
    assert config.trainer.cuda_graphs is True
    assert here.measured[-3:] == [NCHW, CL_C, CL_G]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_texts_have_no_layout_and_their_lengths_no_graphs(device, here):
    here.device = device
    texts = ("model=bert_tiny", "dataset=grammar", "target_params=0.3", "epoch_scale=1000")
    assert chosen(here.settled(*texts)) == CL  # the default, and so the default's keys
    assert set(here.measured) == {CL, CL_C}


def test_what_does_not_work_gives_way_with_one_line(here, caplog):
    here.fault = FAULT
    config = here.settled("trainer=default", "trainer.compile=true")
    assert (config.trainer.compile, here.measured, here.files()) == (False, [], [])
    (line,) = caplog.records
    assert line.levelno == logging.WARNING
    expected = f"trainer.compile=true: torch.compile does not work here ({FAULT}); goes on without"
    assert line.getMessage() == expected


def test_cuda_graphs_without_cuda_give_way_and_compile_stays(here, caplog):
    config = here.settled("trainer=default", "trainer.compile=true", "trainer.cuda_graphs=true")
    assert (config.trainer.compile, config.trainer.cuda_graphs) == (True, False)
    expected = "trainer.cuda_graphs=true: there is no CUDA device here; goes on without"
    assert [each.getMessage() for each in caplog.records] == [expected]


def test_where_nothing_is_open_nothing_is_looked_at(here, monkeypatch):
    monkeypatch.setattr(settle, "make_accelerator", lambda _: pytest.fail("looked for a device"))
    assert here.settled("trainer=default").trainer.channels_last is True


def test_a_network_that_does_not_take_the_data_is_refused_as_ever(here):
    with pytest.raises(UserError, match=r"^model=vgg16: does not take inputs \(1, 8, 8\)"):
        here.settled("model=vgg16")


def test_what_cannot_be_done_takes_for_ever_and_ties_go_to_the_first():
    ahead, ways = Ahead(1000.0, 2), [SimpleNamespace(channels_last=c, compile=False, cuda_graphs=False)
                                     for c in (True, False)]  # fmt: skip
    assert ahead.seconds(Speed(10.0, 5.0)) == 110.0
    assert ahead.best(ways, {CL: "out of memory", NCHW: "out of memory"}) is ways[0]
    assert ahead.best(ways, {CL: Speed(10.0), NCHW: Speed(10.5)}) is ways[0]
    assert ahead.best(ways, {CL: Speed(10.0), NCHW: Speed(10.6)}) is ways[1]
