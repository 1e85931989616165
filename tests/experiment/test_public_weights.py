"""Public weights: they bring their normalisation, are checked before any work, and score as published."""

import os
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from lpslim.base.errors import UserError
from lpslim.data.datasets import digits
from lpslim.experiment import records
from lpslim.experiment.runner import execute
from lpslim.models import family as families
from lpslim.models.families.resnet_cifar import FILES
from lpslim.models.weights import IMAGENET, Published
from lpslim.training.evaluation import evaluate
from tests.composing import configured
from tests.experiment.dying import places

FOLDERS = {"weights": "LPSLIM_WEIGHTS_DIR", "images": "LPSLIM_CIFAR10_DIR"}  # of real files, which few have
PUBLIC = ("model.weights=public", "baseline.epochs=0", "finetune.epochs=0", "regularizer=none", "ratio=0",
          "dataset.val_fraction=0", "trainer.precision=fp32")  # fmt: skip
DIGITS = ("model=resnet20", "dataset=digits32", *PUBLIC)


@pytest.fixture
def published(network, tmp_path, monkeypatch):
    """Publish a random ResNet-20 in a folder; return the network and its file."""
    model, made = network("resnet_cifar", "resnet20", (3, 32, 32)), tmp_path / "made.th"
    images, _ = next(digits.load(configured(*DIGITS).dataset, tmp_path).train.eval_batches(500))
    with torch.no_grad():
        model.linear.bias -= model(images).mean(dim=0)  # else one class is always the largest
    torch.save(model.state_dict(), made)
    file = made.rename(tmp_path / f"resnet20-{sha256(made.read_bytes()).hexdigest()[:8]}.th")
    entry = Published(file.name, "http://127.0.0.1:9/" + file.name, *IMAGENET)
    monkeypatch.setattr(families.get("resnet_cifar"), "published", lambda name: {"public": entry})
    return model, file


def record_of(*words, work):
    return records.read(execute(configured(*words, *places(work)), None))


def test_a_run_from_public_weights_uses_their_normalisation_and_says_so(published, tmp_path):
    model, file = published
    record = record_of(*DIGITS, f"model.weights_dir={file.parent}", work=tmp_path)
    data = digits.load(configured(*DIGITS).dataset, tmp_path)
    parts = (data.normalised(*IMAGENET).test, data.test)
    expected, usual = (evaluate(model, part, task=data.task)["accuracy"] for part in parts)
    assert record.accuracy["baseline"] == {"last": expected, "paper": expected}
    assert expected != usual
    assert (record.data.mean, record.data.std) == tuple(map(list, IMAGENET))
    assert record.config["model"]["weights"] == "public"
    assert str(tmp_path) not in str(record.config)
    given = record_of(*DIGITS, f"model.weights={file}", work=tmp_path)
    assert (given.accuracy["baseline"]["last"], given.data.mean) == (usual, None)
    assert given.stages["baseline"] != record.stages["baseline"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("model.weights_dir={0}/nowhere",), "put into {0}/nowhere by hand"),
        ((), "put into {0}/torch/hub/checkpoints by hand"),
        (("model=vgg_small",), "model.weights=public: none known for vgg_small; there are for "),
        (("dataset=digits", "model.weights_dir={0}"), "are for images of 3 channels, not for (1, 8, 8)"),
    ],
)
def test_what_cannot_be_had_is_refused_before_any_work(published, tmp_path, monkeypatch, words, said):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with pytest.raises(UserError) as refused:
        record_of(*DIGITS, *(word.format(tmp_path) for word in words), work=tmp_path)
    assert said.format(tmp_path) in str(refused.value)
    assert not (tmp_path / "outputs" / "stages").exists()


@pytest.mark.parametrize(("model", "accuracy"), [("resnet20", 91.73), ("resnet56", 93.39)])
def test_the_public_networks_score_as_published(model, accuracy, tmp_path):
    weights, images = (Path(os.environ.get(name, "/nowhere")) for name in FOLDERS.values())
    if not ((weights / FILES[model]).is_file() and images.is_dir()):
        pytest.skip(f"{' and '.join(FOLDERS.values())} do not name folders of {FILES[model]} and of CIFAR-10")
    data = ("dataset=cifar10", f"dataset.root={images}", "dataset.download=false")
    record = record_of(f"model={model}", *data, *PUBLIC, f"model.weights_dir={weights}", work=tmp_path)
    assert record.accuracy["baseline"]["last"] == pytest.approx(accuracy, abs=0.02)
    assert (record.data.train, record.data.test) == (50_000, 10_000)
