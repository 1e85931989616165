"""Checkpoint files that survive kills and betray damage; trainings that go on from them to the same bits."""

import logging
import os

import pytest
import torch

from lpslim.training.callbacks import Callback, MaskKeeper
from lpslim.training.checkpoint import Checkpoint
from tests.training.toys import KilledError, Killing, data, same, sparse, trained

STATE = {"a": torch.arange(4.0), "b": [1, 2.5, "x", None]}


def masked(model):
    with torch.no_grad():
        model[0].weight.mul_(model[0].weight.abs() > 0.1)
    return MaskKeeper(model)


@pytest.mark.parametrize("step", [1, 3, 4, 5, 11])  # inside an epoch, at its end, at the next one's begin
@pytest.mark.parametrize(
    ("join", "config"),
    [
        (lambda model: Callback(), {"warmup_epochs": 1.0}),
        (lambda model: Callback(), {"optimizer": "adamw", "lr": 0.01, "clip_norm": 1.0}),
        (sparse, {}),
        (masked, {"schedule": "step"}),
    ],
    ids=["sgd", "adamw", "admm", "masked"],
)
def test_a_killed_training_goes_on_to_the_same_bits(tmp_path, join, config, step):
    config |= {"dropout": 0.3, "source": data(noisy=True)}
    whole, curve, callback = trained(join, **config)
    killing = Killing(tmp_path / "stage", 0)
    killing.left = step
    with pytest.raises(KilledError):
        trained(join, checkpoint=killing, **config)
    torch.manual_seed(99)  # another process begins elsewhere
    resumed, again, later = trained(join, checkpoint=Checkpoint(tmp_path / "stage", None), **config)
    assert same(resumed, whole)
    assert again == curve
    if join is sparse:
        assert later.convergence == callback.convergence
        assert len(later.convergence) == 6
        pairs = zip(later.sparse().values(), callback.sparse().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_what_was_trained_is_not_trained_again(tmp_path, monkeypatch):
    model, curve, _ = trained(checkpoint=Checkpoint(tmp_path / "stage", 0))
    monkeypatch.setattr(torch.Tensor, "backward", lambda *_: pytest.fail("trained again"))
    again, rows, _ = trained(checkpoint=Checkpoint(tmp_path / "stage", 0))
    assert same(again, model)
    assert rows == curve


def test_one_checkpoint_is_kept_and_the_last_is_read(tmp_path):
    checkpoint = Checkpoint(tmp_path / "key", 0)
    assert checkpoint.load() is None
    checkpoint.save({"step": 1})
    checkpoint.save(STATE)
    (file,) = tmp_path.iterdir()
    assert file.name == "key.checkpoint"
    loaded = checkpoint.load()
    assert torch.equal(loaded["a"], STATE["a"])
    assert loaded["b"] == STATE["b"]
    checkpoint.clear()
    assert not list(tmp_path.iterdir())
    checkpoint.clear()  # nothing to do


@pytest.mark.parametrize("dies_in", ["hashlib.sha256", "os.replace"])  # half-written; not yet in place
def test_a_save_that_is_killed_leaves_the_last_checkpoint_and_no_trace_when_cleared(
    tmp_path, monkeypatch, dies_in
):
    checkpoint = Checkpoint(tmp_path / "key", 0)
    checkpoint.save(STATE)
    if (child := os.fork()) == 0:
        monkeypatch.setattr(dies_in, lambda *_: os._exit(7))
        checkpoint.save({"step": 2})
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert torch.equal(checkpoint.load()["a"], STATE["a"])
    assert len(list(tmp_path.iterdir())) == 2
    checkpoint.clear()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("harm", ["hash", "flip", "truncate", "empty"])
def test_a_damaged_checkpoint_is_not_used(tmp_path, harm, caplog):
    checkpoint = Checkpoint(tmp_path / "key", 0)
    checkpoint.save(STATE)
    content = bytearray(checkpoint.file.read_bytes())
    content[0 if harm == "hash" else len(content) // 2] ^= 1
    checkpoint.file.write_bytes({"truncate": bytes(content[:-9]), "empty": b""}.get(harm, bytes(content)))
    with caplog.at_level(logging.WARNING):
        assert checkpoint.load() is None
    assert str(checkpoint.file) in caplog.text


def test_checkpoints_are_due_by_the_clock(tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr("lpslim.training.checkpoint.time.monotonic", lambda: now)
    always, seldom, never = (Checkpoint(tmp_path / "key", minutes) for minutes in (0, 10, None))
    assert (always.due, seldom.due, never.due) == (True, False, False)
    now = 600.0
    assert (always.due, seldom.due, never.due) == (True, True, False)
    seldom.save({})
    assert not seldom.due


def test_a_training_saves_only_when_it_is_due(tmp_path):
    checkpoint = Checkpoint(tmp_path / "stage", 10)
    trained(checkpoint=checkpoint)
    assert not checkpoint.file.exists()
