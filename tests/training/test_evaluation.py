"""Accuracy and loss by hand: samples are counted, also in a short last batch."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lpslim.data.images import TensorSplit
from lpslim.experiment.config import PROTOCOLS
from lpslim.training.evaluation import EVAL_BATCH, evaluate, summarise

CLASSES = 4


def one_pixel_split(pixels: Tensor, labels: Tensor) -> TensorSplit:
    """Return images of one pixel, which reach the network as they are."""
    images = pixels.to(torch.uint8).view(-1, 1, 1, 1)
    return TensorSplit(images, labels, torch.zeros(1), torch.ones(1))


class Reader(nn.Module):
    """Says what is written in the pixel, with a margin of 2 between the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.sizes: list[int] = []
        self.modes: list[bool] = []
        self.grad_enabled: list[bool] = []

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append(len(images))
        self.modes.append(self.training)
        self.grad_enabled.append(torch.is_grad_enabled())
        return self.scale * F.one_hot(images.flatten().long(), CLASSES)


def short_last_batch() -> TensorSplit:
    """Return a full batch, all of it right, and one more image, which is wrong."""
    labels = torch.arange(EVAL_BATCH + 1) % CLASSES
    pixels = labels.clone()
    pixels[-1] = (labels[-1] + 1) % CLASSES
    return one_pixel_split(pixels, labels)


class TestEvaluate:
    def test_counts_samples_where_a_mean_of_batches_would_say_half(self):
        model = Reader()
        measured = evaluate(model, short_last_batch())
        assert model.sizes == [EVAL_BATCH, 1]
        assert measured["accuracy"] == pytest.approx(100 * EVAL_BATCH / (EVAL_BATCH + 1))
        rest = math.log(math.exp(2) + CLASSES - 1)  # log-sum-exp of the logits 2, 0, 0, 0
        expected = (EVAL_BATCH * (rest - 2) + rest) / (EVAL_BATCH + 1)
        assert measured["loss"] == pytest.approx(expected, rel=1e-5)

    def test_agrees_with_the_whole_split_in_one_batch(self):
        generator = torch.Generator().manual_seed(0)
        count = 2 * EVAL_BATCH + 37
        pixels, labels = (torch.randint(CLASSES, (count,), generator=generator) for _ in range(2))
        measured = evaluate(Reader(), one_pixel_split(pixels, labels))
        logits = 2.0 * F.one_hot(pixels, CLASSES)
        assert measured["accuracy"] == pytest.approx(100 * (pixels == labels).double().mean().item())
        assert measured["loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)

    def test_all_right_and_all_wrong(self):
        labels = torch.arange(8) % CLASSES
        assert evaluate(Reader(), one_pixel_split(labels, labels))["accuracy"] == 100.0
        assert evaluate(Reader(), one_pixel_split((labels + 1) % CLASSES, labels))["accuracy"] == 0.0

    @pytest.mark.parametrize("training", [True, False])
    def test_evaluates_in_evaluation_mode_and_gives_the_model_back_in_its_own(self, training):
        model = Reader().train(training)
        evaluate(model, short_last_batch())
        assert model.modes == [False, False]
        assert model.training is training

    def test_batch_norm_is_used_but_not_changed(self):
        model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(1, CLASSES)).train()
        before = {name: t.clone() for name, t in model.state_dict().items()}
        evaluate(model, short_last_batch())
        assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())

    def test_a_frozen_batch_norm_stays_frozen(self):
        model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(1, CLASSES)).train()
        model[0].eval()
        evaluate(model, short_last_batch())
        assert [module.training for module in model] == [False, True, True]

    def test_builds_no_graph(self):
        model = Reader()
        evaluate(model, short_last_batch())
        assert model.grad_enabled == [False, False]
        assert torch.is_grad_enabled()

    def test_another_forward_stands_in_for_the_model_which_still_changes_mode(self):
        model, seen = Reader().train(), []

        def forward(images: Tensor) -> Tensor:
            seen.append(model.training)
            return torch.zeros(len(images), CLASSES, dtype=torch.bfloat16)  # as autocast returns it

        measured = evaluate(model, short_last_batch(), forward)
        assert seen == [False, False]
        assert model.sizes == []
        assert model.training
        assert measured["loss"] == pytest.approx(math.log(CLASSES), rel=1e-6)


def curve(val: list[float], test: list[float]) -> list[dict[str, float]]:
    return [{"val_accuracy": v, "test_accuracy": t} for v, t in zip(val, test, strict=True)]


class TestSummarise:
    def test_each_protocol_picks_its_epoch(self):
        rows = curve(val=[70.0, 90.0, 80.0, 85.0], test=[72.0, 88.0, 93.0, 86.0])
        assert summarise(rows) == {"last": 86.0, "val": 88.0, "paper": 93.0}

    def test_of_equal_validation_accuracies_the_first_counts(self):
        rows = curve(val=[80.0, 90.0, 90.0], test=[1.0, 2.0, 3.0])
        assert summarise(rows)["val"] == 2.0

    def test_one_epoch_is_every_protocols(self):
        assert summarise(curve([50.0], [60.0])) == dict.fromkeys(PROTOCOLS, 60.0)

    def test_test_accuracy_does_not_choose_the_validation_epoch(self):
        better = summarise(curve(val=[90.0, 80.0], test=[10.0, 99.0]))
        assert better == {"last": 99.0, "val": 10.0, "paper": 99.0}
