"""Data folders and files that cannot be what they should, and the exact message."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from lpslim.base.errors import UserError
from lpslim.data import cifar, glue, imagefolder, tiny_imagenet


def settings(root, name="cifar10", **others):
    given = {"name": name, "root": str(root), "download": False, "val_fraction": 0.5, "crop_padding": 0,
             "flip": False, "image_size": 32, "workers": 0, "max_length": 9, "tokenizer": "tiny",
             "store_gb": 1}  # fmt: skip
    return SimpleNamespace(**{**given, **others})


def tree(root, test="test", classes=10, size=32):
    for split in ("train", test):
        for i in range(classes):
            folder = root / split / f"class{i}"
            folder.mkdir(parents=True)
            Image.new("RGB", (size, size), (i, i, i)).save(folder / "a.png")
    return root


def empty_class(root):
    (root / "train/class3/a.png").unlink()
    return "{root}/train/class3 holds no image (.jpg, .jpeg, .png, .ppm, .bmp, .pgm, .tif, .tiff, .webp)"


def no_classes(root):
    for split in ("train", "test"):
        for folder in (root / split).iterdir():
            (folder / "a.png").unlink()
            folder.rmdir()
    return "{root}/train holds no class folders; expected {root}/train/<class>/<image>"


def other_size(root):
    Image.new("RGB", (32, 31)).save(root / "train/class3/a.png")
    return "{root}/train/class3/a.png is 32x31, not 32x32"


def cut_image(root):
    path = root / "train/class3/a.png"
    path.write_bytes(path.read_bytes()[:50])
    return "{root}/train/class3/a.png: cannot be read as an image (OSError: image file is truncated"


def no_image(root):
    (root / "test/class0/a.png").write_text("<html>")
    return "{root}/test/class0/a.png: cannot be read as an image (UnidentifiedImageError: cannot identify"


def nothing_in_it(root):
    (root / "test/class0/a.png").write_bytes(b"")
    return "{root}/test/class0/a.png: cannot be read as an image (UnidentifiedImageError: cannot identify"


def other_classes(root):
    (root / "test/class3").rename(root / "test/klass3")
    return "{root}: the splits train, test do not hold the same classes"


def fewer_classes(root):
    for split in ("train", "test"):
        (root / split / "class9/a.png").unlink()
        (root / split / "class9").rmdir()
    return "dataset.root={root}: holds 9 classes; cifar10 has 10"


def a_file_for_a_split(root):
    (root / "train").rename(root / "gone")
    (root / "train").write_text("x")
    return "dataset.root={root}: no cifar10 there ("


def too_large(root):
    # a header of 20,000 x 20,000 pixels and no more: a bomb for whoever decodes first
    (root / "train/class3/a.png").unlink()
    (root / "train/class3/a.ppm").write_bytes(b"P6\n20000 20000\n255\n")
    return "{root}/train/class3/a.ppm: cannot be read as an image (DecompressionBombError: Image size"


FAULTS = [empty_class, no_classes, other_size, cut_image, no_image, nothing_in_it, other_classes,
          fewer_classes, a_file_for_a_split, too_large]  # fmt: skip


@pytest.mark.parametrize("spoil", FAULTS)
def test_a_spoilt_folder_is_refused(spoil, tmp_path):
    root = tree(tmp_path / "images")
    message = spoil(root).format(root=root)
    with pytest.raises(UserError) as refused:
        cifar.load(settings(root), tmp_path / "cache")
    assert str(refused.value).startswith(message)
    assert not list((tmp_path / "cache").glob("*")) or spoil is fewer_classes


def test_a_training_set_of_one_image_is_refused(tmp_path):
    root = tree(tmp_path / "images", test="val", classes=1)
    with pytest.raises(UserError, match=r"train: holds 1 sample to train on; two are needed, one of them"):
        imagefolder.load(settings(root, "mine"), tmp_path)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_streamed_image_that_is_broken_is_named_by_the_worker_too(workers, tmp_path):
    root = tree(tmp_path / "images", test="val", classes=2)
    data = imagefolder.load(settings(root, "mine", workers=workers), tmp_path)
    path = root / "val/class1/a.png"
    path.write_bytes(b"no image")
    with pytest.raises(UserError) as refused:
        list(data.test.eval_batches(2))
    assert str(refused.value).startswith(f"{path}: cannot be read as an image (UnidentifiedImageError: ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("val/val_annotations.txt", b"\xff\xfe", "val_annotations.txt: is not UTF-8 text ("),
        ("val/val_annotations.txt", b"a.png", "expected an image of"),
        ("val/val_annotations.txt", b"../../a.png\tclass0\t", "expected an image of"),
        ("wnids.txt", b"\xff", "wnids.txt: is not UTF-8 text ("),
        ("wnids.txt", b"class0 class1", "wnids.txt: names 2 classes, but"),
    ],
)
def test_spoilt_annotations(file, content, message, tmp_path):
    (tmp_path / "train/class0").mkdir(parents=True)
    (tmp_path / "val/images").mkdir(parents=True)
    for place in ("train/class0", "val/images"):
        Image.new("RGB", (64, 64)).save(tmp_path / place / "a.png")
    (tmp_path / "val/val_annotations.txt").write_text("a.png\tclass0\t0\t0\t1\t1\n")
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError) as refused:
        tiny_imagenet.load(settings(tmp_path, "tiny_imagenet"), tmp_path / "cache")
    assert message in str(refused.value)


HEAD = b"index\tsentence1\tsentence2\tscore\n"
GOOD = HEAD + b"0\ta\tb\t1.0\n1\tc\td\t2.0\n"
FILES = {
    "empty": (b"", "has no column 'sentence1' among "),
    "no column": (b"index\tsentence1\tscore\n0\ta\t1\n", "has no column 'sentence2' among"),
    "no label": (HEAD + b"0\ta\tb\t\n", "line 2: label '' must be a number"),
    "a word": (HEAD + b"0\ta\tb\thigh\n", "line 2: label 'high' must be a number"),
    "NaN": (HEAD + b"0\ta\tb\tnan\n", "line 2: label 'nan' must be a number"),
    "infinite": (HEAD + b"0\ta\tb\t1e999\n", "line 2: label '1e999' must be a number"),
    "UTF-16": ("index\tsentence1".encode("utf-16"), "is not UTF-8 text ("),
    "half a character": (HEAD + b"0\t\xc3\tb\t1\n", "is not UTF-8 text ("),
    "heads alone": (HEAD, "holds no texts"),
    "one text": (
        HEAD + b"0\ta\tb\t1\n",
        "holds 1 sample to train on; two are needed, one of them for validation",
    ),
    "all broken": (HEAD + b"0\n1\n", "holds no texts"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_spoilt_text_file_is_refused(kind, tmp_path):
    content, message = FILES[kind]
    folder = tmp_path / "STS-B"
    folder.mkdir()
    (folder / "dev.tsv").write_bytes(GOOD)
    (folder / "train.tsv").write_bytes(content)
    with pytest.raises(UserError) as refused:
        glue.load(settings(tmp_path, "stsb"), tmp_path)
    assert str(refused.value).startswith(f"{folder / 'train.tsv'}")
    assert message in str(refused.value)


def test_two_texts_are_enough(tmp_path):
    (tmp_path / "STS-B").mkdir()
    for name in ("train", "dev"):
        (tmp_path / "STS-B" / f"{name}.tsv").write_bytes(GOOD)
    data = glue.load(settings(tmp_path, "stsb"), tmp_path)
    assert (len(data.train), len(data.val), len(data.test)) == (1, 1, 2)
    assert torch.equal(data.test.labels, torch.tensor([1.0, 2.0]))


def test_the_images_that_are_there_are_read_without_a_warning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(cifar.load(settings(tree(tmp_path / "images")), tmp_path / "cache").train) == 5
