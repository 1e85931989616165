"""Images per second of the pipeline in memory beside torchvision's, and its share of a training step.

    python benchmarks/data.py --quick

Random images of 32x32 with CIFAR's augmentation: pad by 4, crop, mirror, normalise, batches of 256. One side
is images.TensorSplit, the other what most code does: a Dataset of PIL images with RandomCrop,
RandomHorizontalFlip, ToTensor and Normalize, read by a DataLoader with two workers that stay alive between
epochs. Whole epochs in turn, in one process; medians, quartiles in brackets. ``share`` is a batch's time over
that of the batch and ResNet-56's step on it. Two minutes on two CPU cores, one with --quick.
"""

from __future__ import annotations

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

from lpslim.images import TensorSplit, pixel_statistics

BATCH, WORKERS = 256, 2


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
    timing.write(options, host, [rates, step])


if __name__ == "__main__":
    main()
