"""Accuracy and loss by hand: samples are counted, also in a short last batch, and always in float32."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lpslim.data.images import TensorSplit
from lpslim.data.metrics import CLASSIFICATION, Task
from lpslim.training.evaluation import EVAL_BATCH, evaluate, summarise

CLASSES = 4


def one_pixel_split(pixels, labels):
    """Return images of one pixel, which reach the network as they are."""
    images = pixels.to(torch.uint8).view(-1, 1, 1, 1)
    return TensorSplit(images, labels, torch.zeros(1), torch.ones(1))


class Reader(nn.Module):
    """Says what is written in the pixel, with a margin of 2 between the logits; notes how it was called."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.sizes, self.circumstances = [], set()

    def forward(self, images):
        self.sizes.append(len(images))
        autocast = torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
        tf32 = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
        self.circumstances.add((self.training, torch.is_grad_enabled(), autocast, *tf32))
        return self.scale * F.one_hot(images.flatten().long(), CLASSES)


def short_last_batch():
    """Return a full batch, all of it right, and one more image, which is wrong."""
    labels = torch.arange(EVAL_BATCH + 1) % CLASSES
    pixels = labels.clone()
    pixels[-1] = (labels[-1] + 1) % CLASSES
    return one_pixel_split(pixels, labels)


def test_counts_samples_where_a_mean_of_batches_would_say_half():
    model = Reader()
    measured = evaluate(model, short_last_batch(), task=CLASSIFICATION)
    assert model.sizes == [EVAL_BATCH, 1]
    assert measured["accuracy"] == pytest.approx(100 * EVAL_BATCH / (EVAL_BATCH + 1))
    rest = math.log(math.exp(2) + CLASSES - 1)  # log-sum-exp of the logits 2, 0, 0, 0
    expected = (EVAL_BATCH * (rest - 2) + rest) / (EVAL_BATCH + 1)
    assert measured["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_metric_is_of_all_samples_at_once():
    order = Task("order", lambda preds, targets: float((preds * torch.arange(len(targets))).sum()))
    pixels = torch.arange(2 * EVAL_BATCH) % CLASSES
    measured = evaluate(Reader(), one_pixel_split(pixels, pixels), task=order)
    assert measured["accuracy"] == (pixels * torch.arange(2 * EVAL_BATCH)).sum()


@pytest.mark.parametrize("training", [True, False])
def test_evaluates_in_float32_without_a_graph_whatever_is_set_and_puts_that_back(training):
    model, before = Reader().train(training), torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            evaluate(model, short_last_batch(), task=CLASSIFICATION)
            after = torch.is_autocast_enabled("cpu"), torch.is_grad_enabled(), model.training
        tf32 = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    finally:
        torch.backends.cudnn.allow_tf32 = before
        torch.set_float32_matmul_precision("highest")
    assert model.circumstances == {(False, False, False, False, "highest")}
    assert (*after, *tf32) == (True, True, training, True, "high")


@pytest.mark.parametrize(
    ("val", "test", "expected"),
    [
        ([70.0, 90.0, 80.0], [72.0, 88.0, 93.0], {"last": 93.0, "val": 88.0, "paper": 93.0}),
        ([80.0, 90.0, 90.0], [4.0, 2.0, 3.0], {"last": 3.0, "val": 2.0, "paper": 4.0}),  # the first of equals
        ([50.0], [60.0], {"last": 60.0, "val": 60.0, "paper": 60.0}),
    ],
)
def test_each_protocol_picks_its_epoch(val, test, expected):
    rows = [{"val_accuracy": v, "test_accuracy": t} for v, t in zip(val, test, strict=True)]
    assert summarise(rows) == expected


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_evaluates_as_the_cpu_does():
    torch.manual_seed(0)
    wide = (nn.Conv2d(1, 64, 1), nn.ReLU(), nn.Conv2d(64, 64, 1), nn.Flatten(), nn.Linear(64, CLASSES))
    model, split = nn.Sequential(*wide), short_last_batch()
    expected = evaluate(model, split, task=CLASSIFICATION)
    with torch.autocast("cuda", torch.bfloat16):
        found = evaluate(model.cuda(), split.to(torch.device("cuda")), task=CLASSIFICATION)
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)  # TF32 would be off by 1e-3
