"""CIFAR-10 and CIFAR-100 in miniature: both layouts, exact pixels, every refusal."""

import hashlib
import os
import shutil
from urllib.error import URLError

import pytest
import torch

from lpslim.data.datasets import cifar
from lpslim.data.splits import hold_out
from tests.data.making import noise, refusal, settings, write_ppm, write_tree

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


def test_one_pixel_or_a_name_changes_the_fingerprint_and_nothing_else_does(tree, tmp_path):
    root, pixels = tree
    before = load(root)
    (root / "train/class3/notes.txt").write_text("not an image")
    moved = shutil.copytree(root, tmp_path / "elsewhere" / "images")
    assert load(moved).fingerprint == before.fingerprint
    file = root / "test/class8/0000.ppm"
    changed = pixels[file].clone()
    changed[31, 0, 2] ^= 1
    write_ppm(file, changed)
    os.utime(file, ns=(2, 2))
    after = load(root)  # the same cache folder: what it holds must not be taken for the new files
    assert after.fingerprint != before.fingerprint
    assert (after.test.images != before.test.images).nonzero().tolist() == [[8, 31, 0, 2]]
    (moved / "test/class8/0000.ppm").rename(moved / "test/class8/0001.ppm")
    assert load(moved).fingerprint != before.fingerprint


def test_torchvisions_batches(tmp_path, monkeypatch):
    class Batches:
        def __init__(self, root, train, download):
            assert (root, download) == (str(tmp_path), True)
            self.data = noise(40 if train else 10, 32, 32, seed=int(train)).numpy()
            self.targets = [i % 10 for i in range(len(self.data))]

    monkeypatch.setitem(cifar.KINDS, "cifar10", (Batches, 10))
    data = load(tmp_path, download=True)
    train, val = hold_out(40, 0.1)
    images, test = noise(40, 32, 32, seed=1), noise(10, 32, 32, seed=0)
    assert torch.equal(data.train.images, images[train])
    assert torch.equal(data.val.images, images[val])
    assert torch.equal(data.val.labels, val % 10)
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
SPOILT = {  # file or folder, what becomes of it, parts of the message
    "another class": ("test/class3", "moved", "dataset.root={root}: class class3", "test set"),
    "fewer classes": ("train/class9", "moved", "dataset.root={root}: holds 10 classes", "cifar100 has 100"),
    "an empty class": ("train/class3", "emptied", "dataset.root={root}: Found no valid file", " class3. "),
    "no classes": ("train", "emptied", "dataset.root={root}: Couldn't find", "train/<class>/<image>"),
    "another size": (b"P6\n32 31\n255\n" + bytes(2976), None, PPM + "has 32x31 pixels", "expected 32x32"),
    "a cut image": (b"P6\n32 32\n255\nx", None, PPM + "cannot be read as an image", "(OSError"),
    "no image": (b"<html>", None, PPM + "cannot be read as an image", "(UnidentifiedImageError"),
    "a bomb": (
        b"P6\n20000 20000\n255\n",
        None,
        PPM + "cannot be read as an image",
        "(DecompressionBombError",
    ),
}


@pytest.mark.parametrize("fault", SPOILT)
def test_a_spoilt_folder_is_refused(fault, tree):
    root, _ = tree
    place, change, start, part = SPOILT[fault]
    if isinstance(place, bytes):
        (root / "train/class3/0000.ppm").write_bytes(place)
    elif fault != "fewer classes":
        (root / place).rename(root / "test/other")
        if change == "emptied":
            (root / place).mkdir()
    message = refusal(load, root, "cifar100" if fault == "fewer classes" else "cifar10")
    assert message.startswith(start.format(root=root))
    assert part in message
