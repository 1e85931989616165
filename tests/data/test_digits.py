"""The embedded digits: all of them, once, always in the same splits."""

from collections import Counter

import numpy as np
import torch
from sklearn.datasets import load_digits

from lpslim.data.datasets import digits
from tests.data.making import settings


def load(tmp_path, **changes):
    data = digits.load(settings(tmp_path, "digits", **{"image_size": 8, **changes}), tmp_path)
    return data, (data.train, data.val, data.test)


def test_all_digits_are_there_once_every_time_and_can_be_enlarged_in_three_channels(tmp_path):
    def table(images, labels):
        rows = zip(images.reshape(len(labels), -1), labels.tolist(), strict=True)
        return Counter((row.tobytes(), label) for row, label in rows)

    data, parts = load(tmp_path)
    assert (data.name, data.num_classes, data.shape) == ("digits", 10, (1, 8, 8))
    assert [len(part) for part in parts] == [1293, 144, 360]
    assert all(35 <= count <= 37 for count in data.test.labels.bincount().tolist())  # a fifth of each digit
    pixels, labels = load_digits(return_X_y=True)
    loaded = sum((table(part.images.numpy(), part.labels.numpy()) for part in parts), Counter())
    assert loaded == table(np.round(pixels * 255 / 16).astype(np.uint8), labels)
    again, (large, enlarged) = load(tmp_path)[0], load(tmp_path, image_size=24, rgb=True)
    assert data.fingerprint == again.fingerprint != large.fingerprint
    assert torch.equal(data.train.images, again.train.images)
    assert large.shape == (3, 24, 24)
    for small, big in zip(parts, enlarged, strict=True):
        expected = small.images.repeat_interleave(3, 1).repeat_interleave(3, 2).expand(-1, -1, -1, 3)
        assert torch.equal(big.images, expected)
        assert torch.equal(big.labels, small.labels)
