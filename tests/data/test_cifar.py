"""CIFAR-10 and CIFAR-100 in miniature: both layouts, exact pixels, every refusal."""

import hashlib
from urllib.error import URLError

import pytest
import torch

from lpslim.data.datasets import cifar
from lpslim.data.splits import hold_out
from tests.data.making import noise, refusal, settings, write_tree

NAMES = [f"class{i}" for i in range(10)]


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "images"
    return root, write_tree(root, {"train": 2, "test": 1}, NAMES, 32)


def load(root, name="cifar10", **changes):
    return cifar.load(settings(root, name, **changes), root.parent / "cache")


def test_pixels_labels_and_fingerprint_of_image_folders_are_exact(tree):
    root, pixels = tree
    data = load(root)
    assert (data.source, data.num_classes, data.shape) == ("image folder images", 10, (3, 32, 32))
    training = [file for file in pixels if "train" in file.parts]
    for part, chosen in zip((data.train, data.val), hold_out(20, 0.1), strict=True):
        assert torch.equal(part.images, torch.stack([pixels[training[i]] for i in chosen]))
        assert torch.equal(part.labels, chosen // 2)
    assert torch.equal(data.test.images, torch.stack(list(pixels.values())[20:]))
    assert data.test.labels.tolist() == list(range(10))
    assert (data.train.crop_padding, data.train.flip, data.test.flip) == (4, True, False)
    contents = hashlib.sha256()
    for file in pixels:
        contents.update(f"{file.relative_to(root)}\0{file.stat().st_size}\0".encode() + file.read_bytes())
    assert data.fingerprint == contents.hexdigest()


def test_a_list_of_replaced_images_tells_a_lossless_copy(tree):
    root, _ = tree
    before = load(root)
    (root / "FROM_JPEG.txt").write_text("test/class8/0000.ppm\ntrain/class3/0001.ppm\n\n")
    data = load(root)
    assert (data.source, data.fingerprint) == ("lossless copy, 2 of 30 images replaced", before.fingerprint)
    (root / "FROM_JPEG.txt").write_text("test/class8/0009.ppm\n")
    assert refusal(load, root) == f"{root}/FROM_JPEG.txt: lists 'test/class8/0009.ppm', which is not there"
    (root / "FROM_JPEG.txt").write_bytes(b"\xff")
    assert "expected a file of UTF-8 text" in refusal(load, root)


def test_torchvisions_batches(tmp_path, monkeypatch):
    class Batches:
        def __init__(self, root, train, download):
            assert (root, download) == (str(tmp_path), True)
            self.data = noise(40 if train else 10, 32, 32, seed=int(train)).numpy()
            self.targets = [i % 10 for i in range(len(self.data))]

    monkeypatch.setitem(cifar.SOURCES, "cifar10", (Batches, 10))
    data = load(tmp_path, download=True)
    images, test = noise(40, 32, 32, seed=1), noise(10, 32, 32, seed=0)
    for part, chosen in zip((data.train, data.val), hold_out(40, 0.1), strict=True):
        assert torch.equal(part.images, images[chosen])
        assert torch.equal(part.labels, chosen % 10)
    assert torch.equal(data.test.images, test)
    assert (data.source, data.num_classes, data.shape) == ("torchvision batches", 10, (3, 32, 32))
    assert data.fingerprint == hashlib.sha256(images.numpy().tobytes() + test.numpy().tobytes()).hexdigest()


def test_nothing_there(tmp_path, monkeypatch):
    message = refusal(load, tmp_path, "cifar100")
    assert message.startswith(f"dataset.root={tmp_path}: no cifar100 there")
    assert all(part in message for part in ("cifar-100-python", "dataset.download=true", "<class>/<image>"))

    def download(self):
        raise URLError("no route")

    monkeypatch.setattr("torchvision.datasets.CIFAR10.download", download)
    assert "no route" in refusal(lambda: load(tmp_path, download=True))
    assert refusal(load, tmp_path, "cifar20") == "dataset.name=cifar20: must be one of cifar10, cifar100"


PPM = "{root}/train/class3/0000.ppm: "
SPOILT = {  # content of a file, or folder that is emptied; parts of the message
    "another class": (
        "test/class3",
        "dataset.root={root}: class folders differ: ",
        "training set alone: class3",
    ),
    "fewer classes": ("", "dataset.root={root}: holds 10 classes", "cifar100 has 100"),
    "an empty class": ("train/class3", "dataset.root={root}: no image of class3", "train/<class>/<image>"),
    "no classes": ("train", "dataset.root={root}: no class folders", "train/<class>/<image>"),
    "another size": (b"P6\n32 31\n255\n" + bytes(2976), PPM + "has 32x31 pixels", "expected 32x32"),
    "a cut image": (b"P6\n32 32\n255\nx", PPM + "cannot be read as an image", "(OSError"),
    "no image": (b"<html>", PPM + "cannot be read as an image", "(UnidentifiedImageError"),
    "a bomb": (b"P6\n20000 20000\n255\n", PPM + "cannot be read", "(DecompressionBombError"),
}


@pytest.mark.parametrize("fault", SPOILT)
def test_a_spoilt_folder_is_refused(fault, tree):
    root, _ = tree
    change, start, part = SPOILT[fault]
    if isinstance(change, bytes):
        (root / "train/class3/0000.ppm").write_bytes(change)
    elif change:
        (root / change).rename(root / "test/other")
        if fault != "another class":
            (root / change).mkdir()
    message = refusal(load, root, "cifar10" if change else "cifar100")
    assert message.startswith(start.format(root=root))
    assert part in message
