"""Small data sets on the disk, and settings to load them."""

import os
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from lpslim.base.errors import UserError


def settings(root, name="mine", **changes):
    values = {"name": name, "root": str(root), "download": False, "image_size": 16, "rgb": False,
              "val_fraction": 0.1, "crop_padding": 4, "flip": True, "workers": 0, "cache_gb": 1.0,
              "exif": False, "max_length": 16, "tokenizer": "tiny"}  # fmt: skip
    return SimpleNamespace(**{**values, **changes})


def noise(count, height, width, channels=3, seed=0):
    """Return random images (N, H, W, C) uint8."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, height, width, channels), dtype=torch.uint8, generator=generator)


def write_image(file, pixels, mode="RGB"):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.numpy()).convert(mode).save(file)


def write_ppm(file, pixels):
    """Write an uncompressed image, whose bytes depend on no library, with a fixed time of change."""
    file.parent.mkdir(parents=True, exist_ok=True)
    height, width, _ = pixels.shape
    file.write_bytes(b"P6\n%d %d\n255\n" % (width, height) + pixels.numpy().tobytes())
    os.utime(file, ns=(10**18, 10**18))


def write_tree(root, counts, classes, size, below="."):
    """Write noise to ``root/<split>/<class>/<below>/<number>.ppm``; return the pixels by file, in order."""
    pixels = {}
    for split, count in counts.items():
        for name in classes:
            for i in range(count):
                file = root / split / name / below / f"{i:04}.ppm"
                pixels[file] = noise(1, size, size, seed=len(pixels))[0]
                write_ppm(file, pixels[file])
    return pixels


def refusal(load, *arguments):
    """Return the message of the UserError that a call must raise: one line."""
    with pytest.raises(UserError) as refused:
        load(*arguments)
    assert "\n" not in str(refused.value)
    return str(refused.value)
