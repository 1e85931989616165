"""Checkpoints inside a stage: a training goes on to the bits that it would have had."""

import logging
import pickle
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import nn

from lpslim.data.datasets.imagefolder import StreamedSplit
from lpslim.pruning.unstructured import MaskKeeper
from lpslim.sparsity.penalties.lp import Lp
from lpslim.training.checkpoint import Snapshots
from lpslim.training.loop import fit
from lpslim.training.regularizers.admm import Sparsifier
from lpslim.training.runtime import Hooks
from lpslim.training.schedule import Recipe, Trainer
from tests.unit.test_training import data

TRAINER = Trainer(device="cpu", threads=1)


class KilledError(Exception):
    """Stands for a kill: nothing of the program's catches it."""


class Fatal(Hooks):
    """Joins the loop in place of another, and ends it after a step."""

    def __init__(self, other, step):
        self.other, self.step = other, step

    def __getattribute__(self, name):
        if name in ("other", "step", "after_step", "__class__", "__dict__"):
            return object.__getattribute__(self, name)
        return getattr(self.other, name)

    def after_step(self, step, steps_per_epoch):
        if step > self.step:
            raise KilledError
        self.other.after_step(step, steps_per_epoch)


def network():
    torch.manual_seed(0)
    flat = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3))
    return nn.Sequential(*flat, nn.LazyLinear(2))


def sparse(model):
    return Sparsifier(model, Lp(p=5, M=1), lamb=1e-2, rho=1e-1, form="squared", updates_per_epoch=2)


def masked(model):
    with torch.no_grad():
        for weight in (model[0].weight, model[-1].weight):
            weight.mul_(weight.abs() > weight.abs().median())
    return MaskKeeper(model)


def streamed(folder, workers):
    """Return the toy data with training images that are decoded and augmented one by one."""
    for i in range(16):
        pixels = torch.randint(256, (8, 8, 3), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
    split = StreamedSplit([(folder / f"{i}.png", i % 2) for i in range(16)], 4, True, workers)
    return replace(data(), shape=(3, 4, 4), train=split, val=split, test=split)


def trained(source, join, folder=None, until=None, **recipe):
    """Train for three epochs, or until after a step; return the network, its curve and the hooks."""
    model = network()
    if source.shape[0] == 3:
        model[0] = nn.Conv2d(3, 4, 3)
        torch.nn.init.constant_(model[0].weight, 0.1)
        torch.nn.init.zeros_(model[0].bias)
    model(torch.zeros(2, *source.shape))  # the lazy layer takes its shape
    model.load_state_dict({k: v.clone().fill_(0.05) if v.is_floating_point() and "running" not in k else v
                           for k, v in model.state_dict().items()})  # fmt: skip
    hooks = join(model)
    recipe = Recipe(**{"epochs": 3, "batch_size": 4, "lr": 0.05, "warmup_epochs": 1.0, **recipe})
    curve = fit(
        model, source, recipe, TRAINER, seed=3, stage="toy",
        hooks=hooks if until is None else Fatal(hooks, until),
        snapshots=Snapshots(folder / "stage", 0) if folder else None,
    )  # fmt: skip
    return model, [{k: v for k, v in row.items() if k != "seconds"} for row in curve], hooks


@pytest.mark.parametrize("step", [1, 3, 8, 9, 17])
@pytest.mark.parametrize(
    ("join", "recipe"),
    [
        (lambda model: Hooks(), {"optimizer": "sgd"}),
        (lambda model: Hooks(), {"optimizer": "adamw", "clip_norm": 1.0}),
        (sparse, {}),
        (masked, {"schedule": "step"}),
    ],
    ids=["sgd", "adamw", "admm", "masked"],
)
def test_a_training_goes_on_to_the_same_bits(tmp_path, join, recipe, step):
    check_goes_on(tmp_path, data(), join, recipe, step)


@pytest.mark.parametrize("workers", [0, 2])
def test_so_do_images_that_are_streamed_and_augmented_by_others(tmp_path, workers):
    check_goes_on(tmp_path, streamed(tmp_path, workers), sparse, {}, 6)


def check_goes_on(folder, source, join, recipe, step):
    whole, curve, hooks = trained(source, join, **recipe)
    with pytest.raises(KilledError):
        trained(source, join, folder, until=step, **recipe)
    torch.manual_seed(99)  # another process begins elsewhere
    resumed, again, later = trained(source, join, folder, **recipe)
    one, other = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert again == curve
    if isinstance(hooks, Sparsifier):
        assert later.convergence == hooks.convergence
        assert len(hooks.convergence) == 6
        assert all(torch.equal(a, b) for a, b in zip(later.admm.Z, hooks.admm.Z, strict=True))


def test_what_is_finished_is_not_trained_again(tmp_path, monkeypatch):
    model, curve, _ = trained(data(), sparse, tmp_path)
    monkeypatch.setattr("lpslim.training.runtime.Training.step", lambda *_: pytest.fail("trained again"))
    again, rows, _ = trained(data(), sparse, tmp_path)
    assert rows[:-1] == curve[:-1]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


STATE = {"a": torch.arange(4.0), "b": [1, 2.5, "x", None]}


def test_one_checkpoint_is_kept_and_the_last_is_read(tmp_path):
    snapshots = Snapshots(tmp_path / "key", 0)
    assert snapshots.load() is None
    snapshots.save({"step": 1})
    snapshots.save(STATE)
    assert len(list(tmp_path.iterdir())) == 1
    found = snapshots.load()
    assert torch.equal(found["a"], STATE["a"])
    assert found["b"] == STATE["b"]
    snapshots.clear()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("harm", ["flip", "truncate", "empty"])
def test_a_damaged_checkpoint_is_not_used(tmp_path, harm, caplog):
    snapshots = Snapshots(tmp_path / "key", 0)
    snapshots.save(STATE)
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes({"flip": bytes(content), "truncate": bytes(content[:-9]), "empty": b""}[harm])
    with caplog.at_level(logging.WARNING):
        assert snapshots.load() is None
    assert f"{file}: is damaged, and is not used" in caplog.text


def test_a_checkpoint_that_would_execute_code_is_refused(tmp_path):
    class Bomb:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    snapshots = Snapshots(tmp_path / "key", 0)
    snapshots.save({"bomb": torch.zeros(1)})
    (file,) = tmp_path.iterdir()
    torch.save({"bomb": Bomb()}, file)
    file.rename(snapshots.named(file))
    with pytest.raises(pickle.UnpicklingError):
        snapshots.load()
    assert not (tmp_path / "ran").exists()


def test_checkpoints_are_due_by_the_clock(tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr("lpslim.training.checkpoint.time.monotonic", lambda: now)
    often, seldom, never = (Snapshots(tmp_path / "key", minutes) for minutes in (0, 10, None))
    assert (often.due, seldom.due, never.due) == (True, False, False)
    now = 600.0
    assert (often.due, seldom.due, never.due) == (True, True, False)
    seldom.save({})
    assert not seldom.due
