"""Scikit-learn's handwritten digits: 1,797 real 8x8 images, embedded, nothing to download.

Source: Alpaydin and Kaynak, UCI ML repository, doi:10.24432/C50P49.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from lpslim.data.images import image_data
from lpslim.data.splits import Data


def load(settings: Any, cache: Path) -> Data:
    """Return the digits; a fifth, stratified and always the same, is the test set.

    ``settings.image_size``, a multiple of 8, repeats pixels; ``settings.rgb`` repeats the channel.
    """
    pixels, labels = load_digits(return_X_y=True)
    grey = np.round(pixels.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    factor = settings.image_size // 8
    grey = grey.repeat(factor, axis=1).repeat(factor, axis=2).repeat(3 if settings.rgb else 1, axis=3)
    fingerprint = hashlib.sha256(grey.tobytes() + labels.astype("<i8").tobytes()).hexdigest()
    rows = np.arange(len(labels))
    train, test = train_test_split(rows, test_size=0.2, stratify=labels, random_state=0)
    images, targets = torch.from_numpy(grey), torch.from_numpy(labels).long()
    pairs = [(images[part], targets[part]) for part in (train, test)]
    return image_data(settings, "scikit-learn, embedded", fingerprint, 10, *pairs)
