"""The loop: what an epoch's draws follow from, and the optimisers."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lpslim.data.images import splits
from lpslim.data.splits import Data
from lpslim.training.loop import fit
from lpslim.training.runtime import Hooks, make_accelerator, make_optimizer
from lpslim.training.schedule import Recipe, Trainer


def data():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (40, 4, 4, 1), generator=generator, dtype=torch.uint8)
    labels = torch.arange(40) % 2
    parts = splits((images, labels), (images, labels), val_fraction=0.2, crop_padding=0, flip=False)
    return Data("toy", "made here", "0" * 64, 2, (1, 4, 4), **parts)


def trained(global_seed, dropout=0.5, **changes):
    """Train a small network with dropout from fixed weights, whatever was drawn before."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 2))
    torch.manual_seed(global_seed)
    recipe = Recipe(epochs=2, batch_size=8, **{"lr": 0.1, **changes})
    curve = fit(model, data(), recipe, Trainer(device="cpu", threads=1), seed=5, stage="baseline")
    return model, curve


def test_dropout_follows_from_the_seed_not_from_what_ran_before():
    one, other = (trained(seed)[0].state_dict() for seed in (1, 2))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_dropout_differs_from_epoch_to_epoch():
    with_it, without = (trained(1, dropout=p)[1] for p in (0.5, 0.0))
    assert with_it[1]["train_loss"] != without[1]["train_loss"]


def test_adamw_decays_matrices_alone():
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    optimizer = make_optimizer(model, Recipe(optimizer="adamw", lr=0.1, weight_decay=0.3))
    decays = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {name: decays[p] for name, p in model.named_parameters()} == {
        "0.weight": 0.3, "0.bias": 0.0, "1.weight": 0.0, "1.bias": 0.0,
    }  # fmt: skip
    assert isinstance(optimizer, torch.optim.AdamW)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_either_optimiser_learns(optimizer):
    lr = {"sgd": 0.1, "adamw": 0.01}[optimizer]
    _, curve = trained(1, dropout=0.0, optimizer=optimizer, lr=lr)
    assert curve[1]["train_loss"] < curve[0]["train_loss"]


def test_a_bound_on_the_gradients_norm_bounds_the_step():
    torch.manual_seed(0)
    before = nn.Linear(16, 2)
    start = [p.detach().clone() for p in before.parameters()]
    recipe = Recipe(epochs=1, batch_size=32, lr=1.0, momentum=0.0, weight_decay=0.0, clip_norm=1e-3,
                    schedule="constant")  # fmt: skip
    model = nn.Sequential(nn.Flatten(), before)
    fit(model, data(), recipe, Trainer(device="cpu", threads=1), seed=5, stage="baseline")
    moved = torch.cat([(p - s).flatten() for p, s in zip(before.parameters(), start, strict=True)])
    assert moved.norm().item() == pytest.approx(1e-3, rel=1e-3)  # one step of one batch


class Pull(Hooks):
    """Adds a penalty's gradient of a hundred to every weight."""

    def __init__(self, parameters):
        self.parameters = parameters

    def after_backward(self):
        for parameter in self.parameters:
            parameter.grad.add_(100)


def test_the_bound_is_on_the_losss_gradient_and_the_penaltys_joins_after_it():
    torch.manual_seed(0)
    layer = nn.Linear(16, 2)
    start = [p.detach().clone() for p in layer.parameters()]
    recipe = Recipe(epochs=1, batch_size=32, lr=1e-3, momentum=0.0, weight_decay=0.0, clip_norm=1e-3,
                    schedule="constant")  # fmt: skip
    pull = Pull(list(layer.parameters()))
    fit(nn.Sequential(nn.Flatten(), layer), data(), recipe, Trainer(device="cpu", threads=1), seed=5,
        stage="sparsify", hooks=pull)  # fmt: skip
    moved = torch.cat([(s - p).flatten() for p, s in zip(layer.parameters(), start, strict=True)])
    assert moved.tolist() == pytest.approx([0.1] * len(moved), abs=2e-6)


def test_batch_norm_over_all_processes_has_the_same_names_and_tensors():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Sequential(nn.BatchNorm2d(4)))
    kept = dict(model.state_dict(keep_vars=True))
    shared = nn.SyncBatchNorm.convert_sync_batchnorm(model).state_dict(keep_vars=True)
    assert isinstance(model[1][0], nn.SyncBatchNorm)
    assert list(shared) == list(kept)
    assert all(shared[name] is tensor for name, tensor in kept.items())


def compiled(width, **trainer):
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(4 * width, 2))
    model, chosen = nn.Sequential(*layers), Trainer(device="cpu", threads=1, **trainer)
    curve = fit(model, data(), Recipe(epochs=2, batch_size=8), chosen, seed=5, stage="baseline")
    return model.state_dict(), [row["train_loss"] for row in curve], [row["train_accuracy"] for row in curve]


def test_what_was_compiled_before_changes_no_bit_and_graphs_keep_every_answer():
    eager, first = compiled(4), compiled(4, compile=True)
    compiled(5, compile=True)  # of other shapes, as a pruned network is
    again, graphs = compiled(4, compile=True), compiled(4, compile=True, cuda_graphs=True)
    for weights, losses, accuracies in (again, graphs):
        assert all(torch.equal(weights[name], first[0][name]) for name in weights)
        assert (losses, accuracies) == first[1:]
    assert first[1] == pytest.approx(eager[1], abs=1e-5)
    assert all(torch.allclose(first[0][name], eager[0][name], atol=1e-5) for name in eager[0])


def test_without_cuda_the_device_is_the_cpu(monkeypatch):
    everywhere = SimpleNamespace(is_available=lambda: True, is_built=lambda: True)
    monkeypatch.setattr(torch.backends, "mps", everywhere)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert make_accelerator(Trainer()).device.type == "cpu"
