"""CIFAR-10 and CIFAR-100 in miniature: both layouts, exact pixels, every refusal."""

import hashlib
import os
import pickle
import shutil
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100

from lpslim.data.datasets import cifar
from lpslim.data.splits import hold_out
from tests.data.making import noise, refusal, settings, write_image, write_ppm, write_tree


def names(count):
    return [f"class{i:03}" for i in range(count)]


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "images"
    return root, write_tree(root, {"train": 2, "test": 1}, names(10), 32)


def load(root, name="cifar10", **changes):
    return cifar.load(settings(root, name, **changes), root.parent / "cache")


def test_pixels_labels_and_fingerprint_of_image_folders_are_exact(tree):
    root, pixels = tree
    data = load(root)
    assert (data.name, data.source, data.num_classes, data.shape) == (
        "cifar10", "image folder images", 10, (3, 32, 32)
    )  # fmt: skip
    files = [file for file in pixels if "train" in file.parts]
    for part, chosen in zip((data.train, data.val), hold_out(20, 0.1), strict=True):
        assert torch.equal(part.images, torch.stack([pixels[files[i]] for i in chosen]))
        assert torch.equal(part.labels, chosen // 2)
    assert torch.equal(data.test.images, torch.stack([pixels[f] for f in pixels if "test" in f.parts]))
    assert data.test.labels.tolist() == list(range(10))
    assert (data.train.crop_padding, data.train.flip, data.test.flip) == (4, True, False)
    contents = [
        f"{file.relative_to(root)}\0{len(file.read_bytes())}\0".encode() + file.read_bytes()
        for file in pixels
    ]
    assert data.fingerprint == hashlib.sha256(b"".join(contents)).hexdigest()


def test_one_pixel_a_name_and_nothing_else_change_the_fingerprint(tree, tmp_path):
    root, pixels = tree
    before = load(root)
    (root / "train" / "class003" / "notes.txt").write_text("not an image")
    moved = tmp_path / "elsewhere" / "images"
    shutil.copytree(root, moved)
    assert load(moved).fingerprint == before.fingerprint
    file = root / "test/class008/0000.ppm"
    changed = pixels[file].clone()
    changed[31, 0, 2] ^= 1
    write_ppm(file, changed)
    os.utime(file, ns=(2, 2))
    after = load(root)  # the same cache folder: what it holds must not be taken for the new files
    assert after.fingerprint != before.fingerprint
    assert (after.test.images != before.test.images).nonzero().tolist() == [[8, 31, 0, 2]]
    (moved / "test/class008/0000.ppm").rename(moved / "test/class008/0001.ppm")
    assert load(moved).fingerprint != before.fingerprint


def test_image_files_are_opened_once(tree, monkeypatch):
    first = load(tree[0])
    monkeypatch.setattr(Image, "open", None)
    second = load(tree[0])
    for name in ("train", "val", "test"):
        assert torch.equal(getattr(second, name).images, getattr(first, name).images)


def test_a_damaged_cache_is_made_again(tree, caplog):
    root, _ = tree
    first = load(root)
    (file,) = (root.parent / "cache").glob("*.safetensors")
    written = file.read_bytes()
    file.write_bytes(written[:-100] + bytes(100))
    assert torch.equal(load(root).test.images, first.test.images)
    assert "is damaged" in caplog.text
    assert file.read_bytes() == written


def write_batches(root, kind):
    """Write torchvision's pickled batches, rows of (3, 32, 32) bytes; return images and labels by file."""
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    classes, key = (10, "labels") if kind is CIFAR10 else (100, "fine_labels")
    rng = np.random.default_rng(3)
    written = {}
    for name, _ in kind.train_list + kind.test_list:
        labels = rng.permutation(np.repeat(np.arange(classes), 2)).tolist()
        rows = rng.integers(256, size=(len(labels), 3072), dtype=np.uint8)
        (folder / name).write_bytes(
            pickle.dumps({"data": rows, key: labels, "coarse_labels": [0] * len(labels)})
        )
        written[name] = (rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels)
    (folder / kind.meta["filename"]).write_bytes(pickle.dumps({kind.meta["key"]: names(classes)}))
    return written


@pytest.mark.parametrize(("name", "kind", "classes"), [("cifar10", CIFAR10, 10), ("cifar100", CIFAR100, 100)])
def test_torchvisions_batches(name, kind, classes, tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5: os.path.isfile(path))
    written = write_batches(tmp_path / "batches", kind)
    data = load(tmp_path / "batches", name)
    images = torch.from_numpy(np.concatenate([written[file][0] for file, _ in kind.train_list]))
    labels = torch.tensor([label for file, _ in kind.train_list for label in written[file][1]])
    for part, chosen in zip((data.train, data.val), hold_out(len(labels), 0.1), strict=True):
        assert torch.equal(part.images, images[chosen])
        assert torch.equal(part.labels, labels[chosen])
    test_images, test_labels = written[kind.test_list[0][0]]
    assert torch.equal(data.test.images, torch.from_numpy(test_images.copy()))
    assert data.test.labels.tolist() == test_labels
    assert (data.source, data.num_classes, data.shape) == ("torchvision batches", classes, (3, 32, 32))
    assert data.fingerprint == hashlib.sha256(images.numpy().tobytes() + test_images.tobytes()).hexdigest()


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_nothing_there(name, tmp_path, monkeypatch):
    message = refusal(load, tmp_path / "images", name)
    kind = cifar.KINDS[name][0]
    for part in (f"dataset.root={tmp_path}/images: no {name} there", kind.base_folder, "dataset.download=true",
                 "train/<class>/<image>"):  # fmt: skip
        assert part in message

    def download(self):
        raise URLError("no route")

    monkeypatch.setattr(CIFAR10, "download", download)
    assert "no route" in refusal(lambda: load(tmp_path / "images", name, download=True))


def test_another_name_is_refused(tmp_path):
    assert refusal(load, tmp_path, "cifar20") == "dataset.name=cifar20: must be one of cifar10, cifar100"


def empty_class(root):
    (root / "train/class003/0000.ppm").unlink()
    (root / "train/class003/0001.ppm").unlink()
    return "dataset.root={root}: no image (.jpg,", "{root}/train/class003"


def no_classes(root):
    shutil.rmtree(root / "train")
    (root / "train").mkdir()
    return "dataset.root={root}: no class folders", "{root}/train/<class>/<image>"


def other_classes(root):
    (root / "test/class003").rename(root / "test/klass")
    return "dataset.root={root}: class class003 must be in the training and in the test set", ""


def fewer_classes(root):
    shutil.rmtree(root / "train/class009")
    return "dataset.root={root}: holds 9 classes", "cifar10 has 10"


def other_size(root):
    write_image(root / "train/class003/a.png", noise(1, 31, 32)[0])
    return "{root}/train/class003/a.png: has 32x31 pixels", "expected 32x32"


def cut_image(root):
    write_image(root / "train/class003/a.png", noise(1, 32, 32)[0])
    os.truncate(root / "train/class003/a.png", 50)
    return "{root}/train/class003/a.png: cannot be read as an image", "truncated"


def no_image(root):
    (root / "test/class000/0000.ppm").write_text("<html>")
    return "{root}/test/class000/0000.ppm: cannot be read as an image", "cannot identify"


def decompression_bomb(root):  # a header of 20,000 x 20,000 pixels and no more
    (root / "train/class003/0000.ppm").write_bytes(b"P6\n20000 20000\n255\n")
    return "{root}/train/class003/0000.ppm: cannot be read as an image", "DecompressionBomb"


@pytest.mark.parametrize(
    "spoil",
    [
        empty_class,
        no_classes,
        other_classes,
        fewer_classes,
        other_size,
        cut_image,
        no_image,
        decompression_bomb,
    ],
)
def test_a_spoilt_folder_is_refused_and_leaves_no_cache(spoil, tree):
    root, _ = tree
    parts = [part.format(root=root) for part in spoil(root)]
    message = refusal(load, root)
    assert message.startswith(parts[0])
    assert parts[1] in message
    assert not list(root.parent.glob("cache/*.safetensors"))
