"""Images per second: in memory beside torchvision's loader; a folder decoded once beside every epoch.

    python benchmarks/data.py --quick

Random images of 32x32 with CIFAR's augmentation (pad by 4, crop, mirror, normalise), batches of 256. One side
is lpslim's TensorSplit, the other what most code does: a Dataset of PIL images with torchvision's transforms
and a DataLoader with two workers that stay alive between epochs. Whole epochs take turns in one process.

Then a folder of JPEG files of ImageNet's size and weight (500x375, 107 kB): random crops of 224 pixels,
batches of 50, by the process itself and by two workers. Files and pixels are cached. Three minutes.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timing
import torch
from PIL import Image
from timing import Spread
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from lpslim.data.datasets import imagefolder
from lpslim.data.images import TensorSplit, pixel_statistics
from lpslim.data.splits import Split
from lpslim.experiment import config

BATCH, WORKERS = 256, 2
LARGE, LARGE_BATCH, CROP, FILES = (500, 375), 50, 224, 1_000


class Pictures(Dataset[tuple[Tensor, int]]):
    """One image at a time, as torchvision's CIFAR10 delivers them."""

    def __init__(self, split: TensorSplit) -> None:
        self.images: np.ndarray[Any, Any] = split.images.numpy()
        self.labels = split.labels.tolist()
        self.transform = transforms.Compose([
            transforms.RandomCrop(32, padding=split.crop_padding),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((split.mean / 255).tolist(), (split.std / 255).tolist()),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def in_memory(count: int, rounds: int) -> dict[str, Any]:
    """Return the images per second of lpslim and of torchvision's loader."""
    images = torch.randint(256, (count, 32, 32, 3), dtype=torch.uint8)
    split = TensorSplit(images, torch.randint(10, (count,)), *pixel_statistics(images), 4, True)
    options = {"shuffle": True, "drop_last": True, "num_workers": WORKERS, "persistent_workers": True}
    loader = DataLoader(Pictures(split), BATCH, **options)
    works = {
        "ours": lambda: sum(len(labels) for _, labels in split.train_batches(BATCH, seed=0)),
        "torchvision": lambda: sum(len(labels) for _, labels in loader),
    }
    return {"images": count, "batch": BATCH, "workers": WORKERS} | rates(
        works, count // BATCH * BATCH, rounds
    )


def rates(works: dict[str, timing.Work], images: int, rounds: int) -> dict[str, Any]:
    """Return the images per second of two works, and how many times as fast the first is."""
    times = timing.in_turn(works, rounds)
    first, second = works
    row = {f"{name}_per_second": Spread.of(images / t for t in taken) for name, taken in times.items()}
    return row | {"faster": timing.ratio(times, second, over=first)}


def photograph(generator: np.random.Generator) -> Image.Image:
    """Return noise of all scales, which JPEG finds about as hard as a photograph."""
    total = np.zeros((LARGE[1], LARGE[0], 3))
    for cell, strength in ((125, 60), (25, 30), (5, 16), (1, 21)):
        coarse = generator.normal(size=(3, LARGE[1] // cell, LARGE[0] // cell)) * strength
        planes = [Image.fromarray(plane.astype(np.float32)).resize(LARGE) for plane in coarse]
        total += np.stack([np.asarray(plane) for plane in planes], axis=2)
    return Image.fromarray((total + 128).clip(0, 255).astype(np.uint8))


def folder(rounds: int) -> list[dict[str, Any]]:
    """Return the images per second of a folder decoded once and every epoch, by 0 and 2 workers."""
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as place:
        for number in range(FILES + 10):
            part = "train" if number < FILES else "val"
            file = Path(place) / part / str(number % 10) / f"{number}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            photograph(generator).save(file, quality=90)
        return [{"images": FILES, "workers": workers, **epochs(Path(place), workers, rounds)}
                for workers in (0, WORKERS)]  # fmt: skip


def epochs(root: Path, workers: int, rounds: int) -> dict[str, Any]:
    """Return the images per second of either way with so many workers."""
    once = config.Dataset("made", "imagefolder", root=str(root), image_size=CROP, flip=True, workers=workers,
                          val_fraction=0.0, cache_gb=10)  # fmt: skip
    ways = {"once": once, "every_epoch": replace(once, cache_gb=0)}
    splits = {name: imagefolder.load(settings, root / "cache").train for name, settings in ways.items()}

    def epoch(split: Split) -> int:
        return sum(len(labels) for _, labels in split.train_batches(LARGE_BATCH, seed=0))

    return rates({name: partial(epoch, split) for name, split in splits.items()}, FILES, rounds)


def main() -> None:
    """Measure, print and write."""
    options = timing.parser(__doc__, "data").parse_args()
    host, rounds = timing.begin(options), 5 if options.quick else 9
    rows = [in_memory(10_000 if options.quick else 50_000, rounds), *folder(rounds)]
    for row in rows:
        first, second = (row[name].median for name in row if name.endswith("_per_second"))
        print(f"{row['workers']} workers: {first:.0f} and {second:.0f} images/s, faster by {row['faster']}")
    timing.write(options, host, rows)


if __name__ == "__main__":
    main()
