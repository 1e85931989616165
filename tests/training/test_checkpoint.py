"""Checkpoint files that survive kills and betray damage; trainings that go on from them to the same bits."""

import os

import pytest
import torch

from lpslim.training.callbacks import Callback
from lpslim.training.checkpoint import Checkpoint
from tests.training.toys import KilledError, Killing, channels, data, masked, same, sparse, trained

STATE = {"a": torch.arange(4.0), "b": [1, 2.5, "x", None]}


def plain(model):
    return Callback()


CASES = [*((plain, {"warmup_epochs": 1.0}, step) for step in (1, 3, 4, 5, 11)),  # in and between epochs
         (plain, {"optimizer": "adamw", "lr": 0.01, "clip_norm": 1.0}, 5), (sparse, {}, 3), (sparse, {}, 4),
         (channels, {}, 3), (channels, {}, 5), (masked, {"schedule": "step"}, 5)]  # fmt: skip


@pytest.mark.parametrize(("join", "config", "step"), CASES)
def test_a_killed_training_goes_on_to_the_same_bits(tmp_path, join, config, step):
    config |= {"dropout": 0.3, "source": data(noisy=True)}
    whole, curve, callback = trained(join, **config)
    with pytest.raises(KilledError):
        trained(join, checkpoint=Killing(tmp_path / "stage", step), **config)
    torch.manual_seed(99)  # another process begins elsewhere
    resumed, again, later = trained(join, checkpoint=Checkpoint(tmp_path / "stage", None), **config)
    assert same(resumed, whole)
    assert again == curve
    if join in (sparse, channels):
        assert later.convergence == callback.convergence
        assert len(later.convergence) == 6
        assert later.kept() == callback.kept()
    if join is sparse:
        assert all(torch.equal(z, callback.sparse()[name]) for name, z in later.sparse().items())


def test_a_checkpoint_of_another_number_of_processes_is_told_and_not_used(tmp_path, caplog):
    caplog.set_level("INFO")
    whole, curve, _ = trained(checkpoint=Checkpoint(tmp_path / "stage", 0))
    checkpoint = Checkpoint(tmp_path / "stage", None)
    state = checkpoint.load()
    checkpoint.save({**state, "generators": state["generators"] * 2})
    caplog.clear()
    again, rows, _ = trained(checkpoint=checkpoint)
    assert "begins anew: the checkpoint is of 2 processes" in caplog.messages
    assert (same(again, whole), rows) == (True, curve)


def test_what_was_trained_is_not_trained_again(tmp_path, monkeypatch):
    trained(checkpoint=Checkpoint(tmp_path / "stage", 10))
    assert not list(tmp_path.iterdir())  # nothing was due
    model, curve, _ = trained(checkpoint=Checkpoint(tmp_path / "stage", 0))
    monkeypatch.setattr(torch.Tensor, "backward", lambda *_: pytest.fail("trained again"))
    again, rows, _ = trained(checkpoint=Checkpoint(tmp_path / "stage", 0))
    assert same(again, model)
    assert rows == curve


@pytest.mark.parametrize("dies_in", ["hashlib.sha256", "os.replace"])  # half-written; not yet in place
def test_the_last_checkpoint_stays_when_a_save_is_killed(tmp_path, monkeypatch, dies_in):
    checkpoint = Checkpoint(tmp_path / "key", 0)
    assert checkpoint.load() is None
    checkpoint.save({"step": 1})
    checkpoint.save(STATE)
    assert [file.name for file in tmp_path.iterdir()] == ["key.checkpoint"]
    if (child := os.fork()) == 0:
        monkeypatch.setattr(dies_in, lambda *_: os._exit(7))
        checkpoint.save({"step": 2})
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    loaded = checkpoint.load()
    assert torch.equal(loaded["a"], STATE["a"])
    assert loaded["b"] == STATE["b"]
    assert len(list(tmp_path.iterdir())) == 2
    for _ in range(2):  # the second has nothing to do
        checkpoint.clear()
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("harm", ["hash", "flip", "truncate", "empty"])
def test_a_damaged_checkpoint_is_not_used(tmp_path, harm, caplog):
    checkpoint = Checkpoint(tmp_path / "key", 0)
    checkpoint.save(STATE)
    content = bytearray(checkpoint.file.read_bytes())
    content[0 if harm == "hash" else len(content) // 2] ^= 1
    checkpoint.file.write_bytes({"truncate": bytes(content[:-9]), "empty": b""}.get(harm, bytes(content)))
    assert checkpoint.load() is None
    assert str(checkpoint.file) in caplog.text


def test_checkpoints_are_due_by_the_clock(tmp_path):
    checkpoints = [Checkpoint(tmp_path / "key", minutes) for minutes in (0, 10, None)]
    assert [checkpoint.due for checkpoint in checkpoints] == [True, False, False]
    for checkpoint in checkpoints:
        checkpoint.saved_at -= 600  # ten minutes later
    assert [checkpoint.due for checkpoint in checkpoints] == [True, True, False]
    checkpoints[1].save({})
    assert not checkpoints[1].due
