"""The loop against a loop written out by hand; precisions, divergence, the compiler, a GPU."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lpslim.base.errors import DivergenceError
from lpslim.base.files import derive_seed
from lpslim.training.callbacks import Callback
from lpslim.training.evaluation import evaluate
from lpslim.training.loop import fit
from lpslim.training.schedule import RuntimeConfig, TrainConfig, learning_rate
from tests.training.toys import CPU, SEED, STAGE, STEPS, Broken, data, network, same, trained


def by_hand(make, **config):
    """Train a toy network as :func:`trained` does, in the plainest way."""
    model, train, chosen = network(dropout=0.3), data().train, TrainConfig(epochs=3, **config)
    optimizer, losses = make(model), []
    for epoch in range(3):
        torch.manual_seed(derive_seed(SEED, STAGE, "forward", epoch))
        model.train()
        batches = train.train_batches(8, derive_seed(SEED, STAGE, "batches", epoch))
        for step, (inputs, labels) in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(chosen, epoch + (step + 0.5) / STEPS)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs.contiguous()), labels, label_smoothing=chosen.label_smoothing)
            loss.backward()
            if chosen.clip_norm:
                nn.utils.clip_grad_norm_(model.parameters(), chosen.clip_norm)
            optimizer.step()
            losses.append(loss.item())
    return model, losses


def sgd(model):
    return torch.optim.SGD(model.parameters(), 0.05, 0.8, weight_decay=1e-3)


def adamw(model):
    others = [*model[1].parameters(), model[-1].bias]
    matrices = {"params": [model[0].weight, model[-1].weight], "weight_decay": 0.3}
    return torch.optim.AdamW([matrices, {"params": others, "weight_decay": 0.0}], 0.01)


SGD = {"lr": 0.05, "momentum": 0.8, "weight_decay": 1e-3, "warmup_epochs": 1.0, "label_smoothing": 0.1}
ADAMW = {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.3, "clip_norm": 0.1, "schedule": "linear"}


@pytest.mark.parametrize(("make", "config"), [(sgd, SGD), (adamw, ADAMW)])
def test_trains_to_the_bits_of_a_loop_written_by_hand(make, config):
    expected, losses = by_hand(make, **config)
    torch.rand(7)  # what was drawn before does not matter
    model, rows, _ = trained(dropout=0.3, runtime=replace(CPU, channels_last=False), **config)
    assert same(model, expected)
    means = torch.tensor(losses).view(3, STEPS).mean(dim=1).tolist()
    assert [row["train_loss"] for row in rows] == pytest.approx(means, rel=1e-6)


def test_a_row_per_epoch_holds_the_measurements_after_it():
    model, source, seen, config = network(), data(), [], TrainConfig(epochs=2, batch_size=8)
    arguments = {"seed": 0, "stage": "x", "after_epoch": seen.append}
    rows = fit(model, source, config, CPU, **arguments)
    test = evaluate(model, source.test, task=source.task)
    assert rows == seen
    assert (rows[1]["epoch"], rows[1]["test_accuracy"], rows[1]["test_loss"]) == (2, *test.values())


class Pull(Callback):
    """Adds a hundred to every gradient."""

    def __init__(self, model):
        self.parameters = list(model.parameters())

    def after_backward(self):
        for parameter in self.parameters:
            parameter.grad.add_(100)


def test_a_penaltys_gradient_is_not_bounded_with_the_losss():
    plain = {"momentum": 0.0, "weight_decay": 0.0, "schedule": "constant"}
    model, _, _ = trained(Pull, epochs=1, lr=1e-3, clip_norm=1e-3, **plain)
    for before, after in zip(network().parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(before - after, torch.full_like(after, 0.1 * STEPS), rtol=1e-4, atol=0)


def test_each_training_has_its_own_precision_and_accuracy_is_always_of_float32():
    first = trained()[1]
    model, rows, _ = trained(runtime=replace(CPU, precision="bf16"))
    assert rows != first
    assert trained()[1] == first
    assert all(p.dtype == torch.float32 for p in model.parameters())
    test = evaluate(model, data().test, task=data().task)
    assert (rows[-1]["test_accuracy"], rows[-1]["test_loss"]) == tuple(test.values())


@pytest.mark.parametrize(
    ("at", "epoch", "step"),
    [(3, 1, 3), (STEPS + 1, 1, STEPS), (2 * STEPS + 1, 2, STEPS - 1)],  # the second: in the evaluation
)
def test_a_loss_that_is_not_finite_names_its_step(at, epoch, step):
    with pytest.raises(DivergenceError) as caught:
        trained(model=Broken(at), lr=0.01)
    problem = caught.value
    assert (problem.stage, problem.epoch, problem.step, problem.loss) == (STAGE, epoch, step, "nan")
    assert len(problem.curve) == epoch - 1


@pytest.mark.slow
def test_what_was_compiled_before_changes_no_bit():
    compiled, eager = replace(CPU, compile=True), trained()[1]
    first = trained(runtime=compiled)
    trained(runtime=compiled, model=nn.Sequential(nn.Flatten(), nn.Linear(16, 2)))
    again = trained(runtime=compiled)
    assert same(first[0], again[0])
    assert first[1][0]["train_loss"] == pytest.approx(eager[0]["train_loss"], abs=1e-5)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_trains_what_the_cpu_trains_and_gives_the_network_back():
    model, on_gpu, _ = trained(runtime=RuntimeConfig(device="cuda", precision="fp32"))
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    for there, here in zip(on_gpu, trained()[1], strict=True):
        assert there["train_loss"] == pytest.approx(here["train_loss"], abs=0.05)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_replayed_as_a_cuda_graph_is_the_step(precision):
    runtime = RuntimeConfig(device="cuda", precision=precision)
    model, replayed, _ = trained(runtime=replace(runtime, cuda_graphs=True))
    for there, here in zip(replayed, trained(runtime=runtime)[1], strict=True):
        assert there["train_loss"] == pytest.approx(here["train_loss"], abs=1e-3)
    evaluate(model, data().test, task=data().task)  # nothing of the graphs is left in it
