"""Accuracy and loss by hand: samples are counted, also in a short last batch, and always in float32."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lpslim.data.images import TensorSplit
from lpslim.data.metrics import CLASSIFICATION
from lpslim.training.evaluation import EVAL_BATCH, evaluate, summarise

CLASSES = 4


class Reader(nn.Module):
    """Says what is written in the pixel, with a margin of 2 between the logits; notes how it was called."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.circumstances = []

    def forward(self, images):
        autocast = torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
        tf32 = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
        self.circumstances.append((self.training, torch.is_grad_enabled(), autocast, *tf32))
        return self.scale * F.one_hot(images.flatten().long(), CLASSES)


def short_last_batch():
    """Return images of one pixel: a full batch, all of it right, and one more image, which is wrong."""
    labels = torch.arange(EVAL_BATCH + 1) % CLASSES
    pixels = torch.cat([labels[:-1], (labels[-1:] + 1) % CLASSES])
    return TensorSplit(pixels.byte().view(-1, 1, 1, 1), labels, torch.zeros(1), torch.ones(1))


def test_counts_samples_where_a_mean_of_batches_would_say_half():
    model = Reader()
    measured = evaluate(model, short_last_batch(), task=CLASSIFICATION)
    assert measured["accuracy"] == pytest.approx(100 * EVAL_BATCH / (EVAL_BATCH + 1))
    rest = math.log(math.exp(2) + CLASSES - 1)  # log-sum-exp of the logits 2, 0, 0, 0
    expected = (EVAL_BATCH * (rest - 2) + rest) / (EVAL_BATCH + 1)
    assert measured["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_evaluates_in_float32_without_a_graph_whatever_is_set_and_puts_that_back(training, monkeypatch):
    model = Reader().train(training)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    torch.set_float32_matmul_precision("high")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            evaluate(model, short_last_batch(), task=CLASSIFICATION)
            model(torch.zeros(1))  # as before
    finally:
        torch.set_float32_matmul_precision("highest")
    inside, after = (False, False, False, False, "highest"), (training, True, True, True, "high")
    assert model.circumstances == [inside, inside, after]


@pytest.mark.parametrize(
    ("val", "test", "expected"),
    [
        ([70.0, 90.0, 80.0], [72.0, 88.0, 93.0], {"last": 93.0, "val": 88.0, "paper": 93.0}),
        ([80.0, 90.0, 90.0], [4.0, 2.0, 3.0], {"last": 3.0, "val": 2.0, "paper": 4.0}),  # the first of equals
    ],
)
def test_each_protocol_picks_its_epoch(val, test, expected):
    rows = [{"val_accuracy": v, "test_accuracy": t} for v, t in zip(val, test, strict=True)]
    assert summarise(rows) == expected
    del expected["val"]
    assert summarise([{"test_accuracy": t} for t in test]) == expected
