"""CIFAR-10, CIFAR-100 and Tiny-ImageNet in miniature: every layout, exact pixels, every refusal."""

import hashlib
import os
import pickle
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100

from lpslim.base.errors import UserError
from lpslim.data import cifar, tiny_imagenet
from lpslim.data.splits import hold_out

THEN = 10**18  # a time of change in nanoseconds: it is part of the cache's name


def settings(name, root, download=False):
    return SimpleNamespace(
        name=name, root=str(root), download=download, val_fraction=0.1, crop_padding=4, flip=True
    )


def write_tree(root, counts, classes, size, inside="."):
    """Write uncompressed images of noise, whose bytes depend on no library, and return their pixels."""
    generator = torch.Generator().manual_seed(5)
    pixels = {}
    for split, count in counts.items():
        for name in classes:
            (root / split / name / inside).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                file = root / split / name / inside / f"{i:04}.ppm"
                image = torch.randint(256, (size, size, 3), dtype=torch.uint8, generator=generator)
                write_ppm(file, image)
                pixels[file] = image
    return pixels


def write_ppm(file, image):
    height, width, _ = image.shape
    file.write_bytes(b"P6\n%d %d\n255\n" % (width, height) + image.numpy().tobytes())
    os.utime(file, ns=(THEN, THEN))


def refusal(load, *arguments):
    with pytest.raises(UserError) as refused:
        load(*arguments)
    message = str(refused.value)
    assert "\n" not in message
    return message


# ---- CIFAR


def names_of(count):
    return [f"class{i:03}" for i in range(count)]


def test_a_cifar10_folder_keeps_its_fingerprint_and_its_place_in_the_cache(tmp_path):
    # literal: stored stages are found by the fingerprint, decoded images by the file's name
    root, cache = tmp_path / "images", tmp_path / "cache"
    write_tree(root, {"train": 2, "test": 1}, [f"class{i}" for i in range(10)], 32)
    data = cifar.load(settings("cifar10", root), cache)
    assert data.fingerprint == "2cadaed70f1bc1970ba1ec7acc56e231a1b2e887b89810820dd0a6215741a1d1"
    assert [path.name for path in cache.iterdir()] == ["ce55751e05b7a8096da51c5bd574ea1a.safetensors"]
    assert (data.name, data.source, data.num_classes) == ("cifar10", "image folder images", 10)
    assert data.train.labels.tolist() == [0, 0, 1, 1, *(i for i in range(3, 10) for _ in range(2))]
    assert data.val.labels.tolist() == [2, 2]


def test_a_cifar100_folder(tmp_path):
    pixels = write_tree(tmp_path / "images", {"train": 1, "test": 1}, names_of(100), 32)
    data = cifar.load(settings("cifar100", tmp_path / "images"), tmp_path / "cache")
    assert (data.name, data.num_classes, data.shape) == ("cifar100", 100, (3, 32, 32))
    assert data.test.labels.tolist() == list(range(100))
    assert torch.equal(data.test.images[37], pixels[tmp_path / "images" / "test" / "class037" / "0000.ppm"])


def write_batches(root, kind, per_class=2):
    """Write torchvision's pickled batches, rows of (3, 32, 32) bytes; return images and labels by file."""
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    classes, key = (10, "labels") if kind is CIFAR10 else (100, "fine_labels")
    rng = np.random.default_rng(3)
    written = {}
    for name, _ in kind.train_list + kind.test_list:
        labels = rng.permutation(np.repeat(np.arange(classes), per_class)).tolist()
        rows = rng.integers(256, size=(len(labels), 3072), dtype=np.uint8)
        coarse = {"coarse_labels": [0] * len(labels)} if kind is CIFAR100 else {}
        (folder / name).write_bytes(pickle.dumps({"data": rows, key: labels, **coarse}))
        written[name] = (rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels)
    meta = {kind.meta["key"]: names_of(classes)}
    (folder / kind.meta["filename"]).write_bytes(pickle.dumps(meta))
    return written


@pytest.fixture
def unchecked(monkeypatch):
    """Let torchvision take files whose MD5 sums are not the published ones."""
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5: os.path.isfile(path))


@pytest.mark.parametrize(("name", "kind", "classes"), [("cifar10", CIFAR10, 10), ("cifar100", CIFAR100, 100)])
def test_torchvisions_batches(name, kind, classes, tmp_path, unchecked):
    written = write_batches(tmp_path, kind)
    data = cifar.load(settings(name, tmp_path), tmp_path / "cache")

    fitting = [written[file] for file, _ in kind.train_list]
    images = torch.from_numpy(np.concatenate([images for images, _ in fitting]))
    labels = torch.tensor([label for _, labels in fitting for label in labels])
    kept, held = hold_out(len(labels), 0.1)
    for part, chosen in ((data.train, kept), (data.val, held)):
        assert torch.equal(part.images, images[chosen])
        assert torch.equal(part.labels, labels[chosen])
    test_images, test_labels = written[kind.test_list[0][0]]
    assert torch.equal(data.test.images, torch.from_numpy(test_images.copy()))
    assert data.test.labels.tolist() == test_labels
    assert (data.name, data.source) == (name, "torchvision batches")
    assert (data.num_classes, data.shape) == (classes, (3, 32, 32))
    contents = images.numpy().tobytes() + test_images.tobytes()
    assert data.fingerprint == hashlib.sha256(contents).hexdigest()
    assert (data.train.crop_padding, data.train.flip, data.test.flip) == (4, True, False)


@pytest.mark.parametrize(("name", "expected", "found"), [("cifar10", 10, 100), ("cifar100", 100, 10)])
def test_another_number_of_classes_is_refused(name, expected, found, tmp_path):
    root = tmp_path / "images"
    write_tree(root, {"train": 1, "test": 1}, names_of(found), 32)
    said = refusal(cifar.load, settings(name, root), tmp_path / "cache")
    assert said == f"dataset.root={root}: holds {found} classes; {name} has {expected}"


def test_another_name_is_refused(tmp_path):
    said = refusal(cifar.load, settings("cifar20", tmp_path), tmp_path / "cache")
    assert said == "dataset.name=cifar20: must be one of cifar10, cifar100"


@pytest.mark.parametrize(
    ("name", "folder"), [("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python")]
)
def test_no_cifar_there(name, folder, tmp_path):
    said = refusal(cifar.load, settings(name, tmp_path), tmp_path / "cache")
    assert said == (
        f"dataset.root={tmp_path}: no {name} there (Dataset not found or corrupted. You can use "
        f"download=True to download it). Expected {tmp_path}/{folder}/ (torchvision's; "
        "dataset.download=true fetches it), or "
        f"{tmp_path}/train/<class>/<image> and {tmp_path}/test/<class>/<image>"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_download_that_fails_is_told(tmp_path, monkeypatch):
    def fail(self):
        raise URLError("no route")

    monkeypatch.setattr(CIFAR10, "download", fail)
    said = refusal(cifar.load, settings("cifar100", tmp_path, download=True), tmp_path / "cache")
    assert said.startswith(
        f"dataset.root={tmp_path}: no cifar100 there (<urlopen error no route>). Expected "
    )


# ---- Tiny-ImageNet

WNIDS = ["n01443537", "n01629819", "n02124075"]


@pytest.fixture
def root(tmp_path):
    return tmp_path / "tiny"


def write_archive(root):
    """Write the archive's layout with its 3 x 4 training and 6 annotated test images; return the pixels."""
    pixels = write_tree(root, {"train": 4}, WNIDS, 64, inside="images")
    (root / "val" / "images").mkdir(parents=True)
    generator = torch.Generator().manual_seed(6)
    lines = []
    for i in reversed(range(6)):
        file = root / "val" / "images" / f"val_{i}.ppm"
        pixels[file] = torch.randint(256, (64, 64, 3), dtype=torch.uint8, generator=generator)
        write_ppm(file, pixels[file])
        lines.append(f"{file.name}\t{WNIDS[i % 3]}\t0\t0\t63\t63\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("\n".join(reversed(WNIDS)))  # in no order, as in the archive
    (root / "train" / WNIDS[0] / f"{WNIDS[0]}_boxes.txt").write_text("0.JPEG\t0\t0\t63\t63\n")
    return pixels


def load_tiny(root, name="tiny"):
    return tiny_imagenet.load(settings(name, root), root.parent / "cache")


def test_the_archives_own_layout(root):
    pixels = write_archive(root)
    data = load_tiny(root)
    assert (data.name, data.source, data.num_classes) == ("tiny", "image folder tiny", 3)
    assert (data.shape, len(data.train), len(data.val)) == ((3, 64, 64), 11, 1)
    training = [file for file in sorted(pixels) if "train" in file.parts]
    for part, chosen in zip((data.train, data.val), hold_out(12, 0.1), strict=True):
        assert torch.equal(part.images, torch.stack([pixels[training[i]] for i in chosen]))
        assert part.labels.tolist() == [WNIDS.index(training[i].parts[-3]) for i in chosen]
    assert data.test.labels.tolist() == [0, 1, 2, 0, 1, 2]
    for i in range(6):
        assert torch.equal(data.test.images[i], pixels[root / "val" / "images" / f"val_{i}.ppm"])


def test_plain_image_folders(root):
    pixels = write_tree(root, {"train": 2, "val": 1}, WNIDS, 64)
    data = load_tiny(root)
    assert (len(data.train) + len(data.val), len(data.test), data.num_classes) == (6, 3, 3)
    assert data.test.labels.tolist() == [0, 1, 2]
    for image, name in zip(data.test.images, WNIDS, strict=True):
        assert torch.equal(image, pixels[root / "val" / name / "0000.ppm"])


def test_an_archive_whose_test_images_were_sorted_into_folders(root):
    write_tree(root, {"train": 2}, WNIDS, 64, inside="images")
    write_tree(root, {"val": 1}, WNIDS, 64)
    (root / "val" / "val_annotations.txt").write_text("left behind")
    assert load_tiny(root).test.labels.tolist() == [0, 1, 2]


def test_grey_images_become_rgb(root):
    pixels = write_tree(root, {"train": 2, "val": 1}, WNIDS, 64)
    file = root / "val" / WNIDS[1] / "0000.ppm"
    grey = pixels[file][..., 0]
    file.unlink()
    Image.fromarray(grey.numpy()).save(file.with_suffix(".png"))
    assert torch.equal(load_tiny(root).test.images[1], grey[..., None].expand(-1, -1, 3))


def test_the_annotations_belong_to_the_fingerprint_and_to_the_cache(root):
    write_archive(root)
    before = load_tiny(root)
    assert load_tiny(root).fingerprint == before.fingerprint
    annotations = root / "val" / "val_annotations.txt"
    text = annotations.read_text()
    for wnid, other in ((WNIDS[0], "swap"), (WNIDS[1], WNIDS[0]), ("swap", WNIDS[1])):
        text = text.replace(wnid, other)
    annotations.write_text(text)  # of the same length
    os.utime(annotations, ns=(1, 1))
    after = load_tiny(root)
    assert after.test.labels.tolist() == [1, 0, 2, 1, 0, 2]
    assert torch.equal(after.test.images, before.test.images)
    assert after.fingerprint != before.fingerprint


def expected(root):
    return (
        "Expected the content of http://cs231n.stanford.edu/tiny-imagenet-200.zip: "
        f"{root}/train/<class>/images/* and {root}/val/images/* with {root}/val/val_annotations.txt, or "
        f"{root}/train/<class>/<image> and {root}/val/<class>/<image>"
    )


@pytest.mark.parametrize("made", [[], ["train"], ["val"]])
def test_no_tiny_imagenet_there(root, made):
    for name in made:
        (root / name).mkdir(parents=True)
    assert refusal(load_tiny, root) == f"dataset.root={root}: no images there. {expected(root)}"


def test_missing_annotations(root):
    write_archive(root)
    (root / "val" / "val_annotations.txt").unlink()
    said = refusal(load_tiny, root)
    assert said == f"dataset.root={root}: val/images without val/val_annotations.txt. {expected(root)}"


@pytest.mark.parametrize(
    ("line", "name", "label"),
    [
        ("val_9.ppm\tn01443537\t0\t0\t63\t63", "val_9.ppm", "n01443537"),
        ("val_1.ppm\tn99999999\t0\t0\t63\t63", "val_1.ppm", "n99999999"),
        ("val_1.ppm", "val_1.ppm", ""),
        ("", "", ""),
        ("../images/val_1.ppm\tn01443537", "../images/val_1.ppm", "n01443537"),
    ],
)
def test_an_annotation_that_fits_nothing(line, name, label, root):
    write_archive(root)
    annotations = root / "val" / "val_annotations.txt"
    rows = annotations.read_text().splitlines()
    annotations.write_text("\n".join([rows[0], line, *rows[2:]]))
    assert refusal(load_tiny, root) == (
        f"{annotations}, line 2: expected an image of {root}/val/images and a class of train, "
        f"found {name!r} and {label!r}"
    )


def test_annotations_that_were_cut(root):
    write_archive(root)
    annotations = root / "val" / "val_annotations.txt"
    annotations.write_text("\n".join(annotations.read_text().splitlines()[:4]))
    assert refusal(load_tiny, root) == f"{annotations}: does not name {root}/val/images/val_0.ppm"


def test_an_archive_of_which_a_part_was_unpacked(root):
    write_archive(root)
    (root / "wnids.txt").write_text("\n".join([*WNIDS, "n09999999"]))
    assert refusal(load_tiny, root) == (
        f"{root}/wnids.txt: names 4 classes, but {root}/train holds 3; n09999999 is in one of them alone"
    )


@pytest.mark.parametrize("layout", ["archive", "folders"])
def test_classes_that_differ_between_train_and_val(layout, root):
    if layout == "archive":
        write_archive(root)
        annotations = root / "val" / "val_annotations.txt"
        annotations.write_text(annotations.read_text().replace(WNIDS[2], WNIDS[1]))
    else:
        write_tree(root, {"train": 1, "val": 1}, WNIDS, 64)
        (root / "val" / WNIDS[2]).rename(root / "val" / "n09999999")
    said = refusal(load_tiny, root)
    assert said == f"{root}: the splits train, val do not hold the same classes"
    assert not (root.parent / "cache").exists()


def test_an_image_of_another_size(root):
    write_tree(root, {"train": 1, "val": 1}, WNIDS, 64)
    file = root / "train" / WNIDS[1] / "0000.ppm"
    write_ppm(file, torch.zeros(64, 60, 3, dtype=torch.uint8))
    assert refusal(load_tiny, root) == f"{file} is 60x64, not 64x64"
