"""Images per second: in memory beside torchvision, with the share of a training step; a folder decoded once.

    python benchmarks/data.py --quick

Random images of 32x32 with CIFAR's augmentation: pad by 4, crop, mirror, normalise, batches of 256. One side
is images.TensorSplit, the other what most code does: a Dataset of PIL images with RandomCrop,
RandomHorizontalFlip, ToTensor and Normalize, read by a DataLoader with two workers that stay alive between
epochs. Whole epochs in turn, in one process; medians, quartiles in brackets. ``share`` is a batch's time over
that of the batch and ResNet-56's step on it.

Then a folder of JPEG files of the size and weight of ImageNet's (500x375, 107 kB): random crops of 224
pixels, mirrored, normalised, batches of 50, by the process itself and by two workers that each epoch begins
anew. ``streamed`` decodes every image, ``stored`` finds its pixels in the mapped file of lpslim.data.decoded; files
and pixels are in the system's cache. Three minutes on two idle CPU cores, one with --quick.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import timing
import torch
from admm_overhead import Plain
from PIL import Image
from timing import Spread
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from lpslim.data import imagefolder
from lpslim.data.images import TensorSplit, pixel_statistics

BATCH, WORKERS = 256, 2
LARGE, LARGE_BATCH, CROP = (500, 375), 50, 224


class Pictures(Dataset[tuple[Tensor, int]]):
    """One image at a time, as torchvision's CIFAR10 delivers them."""

    def __init__(self, split: TensorSplit) -> None:
        self.images: np.ndarray[Any, Any] = split.images.numpy()
        self.labels = split.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=split.crop_padding),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((split.mean / 255).tolist(), (split.std / 255).tolist()),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def drawn(count: int) -> TensorSplit:
    """Return random images and labels."""
    images = torch.randint(256, (count, 32, 32, 3), dtype=torch.uint8)
    return TensorSplit(images, torch.randint(10, (count,)), *pixel_statistics(images), 4, True)


def throughput(count: int, rounds: int) -> dict[str, Any]:
    """Return the images per second of either side."""
    split = drawn(count)
    options = {"shuffle": True, "drop_last": True, "num_workers": WORKERS, "persistent_workers": True}
    loader = DataLoader(Pictures(split), BATCH, **options)
    works = {
        "ours": lambda: sum(len(labels) for _, labels in split.train_batches(BATCH, seed=0)),
        "torchvision": lambda: sum(len(labels) for _, labels in loader),
    }
    times = timing.in_turn(works, rounds)
    shown = count // BATCH * BATCH
    rates = {f"{name}_per_second": Spread.of(shown / t for t in taken) for name, taken in times.items()}
    return {
        "images": count,
        "batch": BATCH,
        "workers": WORKERS,
        **rates,
        "faster": timing.ratio(times, "torchvision", over="ours"),
    }


def share(count: int, rounds: int) -> dict[str, Any]:
    """Return what part of ResNet-56's training a batch is."""
    step = Plain("resnet56", BATCH)
    split = drawn(count).to(step.images.device)
    batches = split.train_batches(BATCH, seed=0)
    times = timing.in_turn({"batch": lambda: next(batches), "step": step}, rounds)
    return {
        "network": "resnet56",
        "batch_ms": Spread.of(1e3 * t for t in times["batch"]),
        "step_ms": Spread.of(1e3 * t for t in times["step"]),
        "share": Spread.of(a / (a + b) for a, b in zip(times["batch"], times["step"], strict=True)),
    }


def photograph(generator: np.random.Generator) -> Image.Image:
    """Return noise of all scales, which JPEG finds about as hard as a photograph."""
    total = np.zeros((LARGE[1], LARGE[0], 3))
    for cell, strength in ((125, 60), (25, 30), (5, 16), (1, 21)):
        coarse = generator.normal(size=(LARGE[1] // cell, LARGE[0] // cell, 3)) * strength
        channels = [
            Image.fromarray(each.astype(np.float32)).resize(LARGE) for each in coarse.transpose(2, 0, 1)
        ]
        total += np.stack([np.asarray(each) for each in channels], axis=2)
    return Image.fromarray((total + 128).clip(0, 255).astype(np.uint8))


def folder(count: int, rounds: int) -> list[dict[str, Any]]:
    """Return the images per second of ``count`` training images, streamed and stored, by 0 and 2 workers."""
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        for number in range(count + 10):
            file = root / ("train" if number < count else "val") / str(number % 10) / f"{number}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            photograph(generator).save(file, quality=90)
        weight = sum(file.stat().st_size for file in root.rglob("*.jpg")) / (count + 10)
        made = timing.seconds(_split(root, WORKERS, 10).decoded)
        shared = {"images": count, "size": LARGE, "jpeg_kb": weight / 1e3, "made_in_seconds": made}
        return [{**shared, **_epochs(root, workers, rounds)} for workers in (0, WORKERS)]


def _split(root: Path, workers: int, gigabytes: float) -> imagefolder.StreamedSplit:
    asked = {"name": "made", "root": str(root), "image_size": CROP, "val_fraction": 0.0, "flip": True}
    settings = SimpleNamespace(**asked, workers=workers, store_gb=gigabytes)
    return imagefolder.load(settings, root / "cache").train


def _epochs(root: Path, workers: int, rounds: int) -> dict[str, Any]:
    splits = {"streamed": _split(root, workers, 0), "stored": _split(root, workers, 10)}

    def epoch(name: str) -> int:
        return sum(len(labels) for _, labels in splits[name].train_batches(LARGE_BATCH, seed=0))

    times = timing.in_turn({name: partial(epoch, name) for name in splits}, rounds)
    shown = epoch("stored")
    rates = {f"{name}_per_second": Spread.of(shown / t for t in taken) for name, taken in times.items()}
    faster = timing.ratio(times, "streamed", over="stored")
    return {"crop": CROP, "batch": LARGE_BATCH, "workers": workers, **rates, "faster": faster}


def main() -> None:
    """Measure, print and write."""
    options = timing.parser(__doc__, "data").parse_args()
    host = timing.begin(options)
    rates = throughput(10_000 if options.quick else 50_000, rounds=5 if options.quick else 9)
    for name in ("ours", "torchvision"):
        print(f"{name:<12} {rates[f'{name}_per_second'].median:9.0f} images per second")
    print(f"faster by    {rates['faster']}")
    step = share(50_000, rounds=5 if options.quick else 15)
    print(
        f"ResNet-56, batch {BATCH}: {step['batch_ms'].median:.2f} ms a batch, "
        f"{step['step_ms'].median:.0f} ms a step, share {100 * step['share'].median:.3f} %"
    )
    large = folder(1_000, rounds=5 if options.quick else 15)
    print(f"{CROP} px: decoded once in {large[0]['made_in_seconds']:.1f} s")
    for row in large:
        streamed, stored = (row[f"{name}_per_second"].median for name in ("streamed", "stored"))
        print(
            f"{row['workers']} workers    {streamed:.0f} images per second, stored {stored:.0f}, "
            f"faster by {row['faster']}"
        )
    timing.write(options, host, [rates, step, *large])


if __name__ == "__main__":
    main()
