"""Scikit-learn's handwritten digits: 1,797 real 8x8 images, embedded, nothing to download.

Source: Alpaydin and Kaynak, UCI ML repository, doi:10.24432/C50P49.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from lpslim.images import ImageData, splits

TEST_FRACTION = 0.2


def load(settings: Any, cache: Path) -> ImageData:
    """Return the digits; a fifth, stratified and always the same, is the test set."""
    pixels, labels = load_digits(return_X_y=True)
    grey = np.round(pixels.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    fingerprint = hashlib.sha256(grey.tobytes() + labels.astype("<i8").tobytes()).hexdigest()
    train, test = train_test_split(
        np.arange(len(labels)), test_size=TEST_FRACTION, stratify=labels, random_state=0
    )
    images, targets = torch.from_numpy(grey), torch.from_numpy(labels).long()
    parts = splits(
        (images[train], targets[train]),
        (images[test], targets[test]),
        val_fraction=settings.val_fraction,
        crop_padding=settings.crop_padding,
        flip=settings.flip,
    )
    return ImageData("digits", "scikit-learn, embedded", fingerprint, 10, (1, 8, 8), **parts)
