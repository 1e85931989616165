"""Data set with a metric of its own: horizontal or vertical stripes under noise, by balanced accuracy."""

from dataclasses import replace

import torch

from lpslim.data.images import image_data
from lpslim.data.metrics import Task


def balanced(preds, targets):
    recalls = [(preds[targets == label] == label).double().mean() for label in targets.unique()]
    return 100 * float(torch.stack(recalls).mean())


def draw(count, size, generator):
    labels = torch.randint(2, (count,), generator=generator)
    stripes = torch.arange(size).remainder(2).mul(200)
    images = torch.where(labels.view(-1, 1, 1).bool(), stripes.view(1, size, 1), stripes.view(1, 1, size))
    noise = torch.randint(56, (count, size, size), generator=generator)
    return (images + noise).to(torch.uint8).unsqueeze(-1), labels


def load(settings, cache):
    generator = torch.Generator().manual_seed(0)
    train, test = (draw(count, settings.image_size, generator) for count in (400, 100))
    data = image_data(settings, "toy stripes", f"stripes-{settings.image_size}", 2, train, test)
    return replace(data, task=Task("balanced accuracy", balanced))
