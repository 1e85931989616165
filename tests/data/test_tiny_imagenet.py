"""Tiny-ImageNet in miniature: every layout, exact pixels, broken annotations."""

import pytest
import torch

from lpslim.data.datasets import tiny_imagenet
from lpslim.data.splits import hold_out
from tests.data.making import noise, refusal, settings, write_ppm, write_tree

WNIDS = ["n01443537", "n01629819", "n02124075"]


@pytest.fixture
def root(tmp_path):
    return tmp_path / "tiny"


def write_archive(root):
    """Write the archive's layout, 3 x 4 training and 6 annotated test images; return the pixels by file."""
    pixels = write_tree(root, {"train": 4}, WNIDS, 64, below="images")
    lines = []
    for i in reversed(range(6)):
        file = root / "val" / "images" / f"val_{i}.ppm"
        pixels[file] = noise(1, 64, 64, seed=100 + i)[0]
        write_ppm(file, pixels[file])
        lines.append(f"{file.name}\t{WNIDS[i % 3]}\t0\t0\t63\t63\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "train" / WNIDS[0] / "boxes.txt").write_text("0.JPEG\t0\t0\t63\t63\n")
    return pixels


def load(root):
    return tiny_imagenet.load(settings(root, "tiny"), root.parent / "cache")


def test_the_archives_own_layout(root):
    pixels = write_archive(root)
    data = load(root)
    assert (data.source, data.num_classes, data.shape) == ("image folder tiny", 3, (3, 64, 64))
    training = [file for file in pixels if "train" in file.parts]
    for part, chosen in zip((data.train, data.val), hold_out(12, 0.1), strict=True):
        assert torch.equal(part.images, torch.stack([pixels[training[i]] for i in chosen]))
        assert torch.equal(part.labels, chosen // 4)
    assert data.test.labels.tolist() == [0, 1, 2, 0, 1, 2]
    for i in range(6):
        assert torch.equal(data.test.images[i], pixels[root / "val" / "images" / f"val_{i}.ppm"])


@pytest.mark.parametrize("below", [".", "images"])
def test_test_images_in_class_folders(root, below):
    write_tree(root, {"train": 2}, WNIDS, 64, below)
    pixels = write_tree(root, {"val": 1}, WNIDS, 64)
    (root / "val" / "val_annotations.txt").write_text("left behind")
    data = load(root)
    assert len(data.train) + len(data.val) == 6
    assert data.test.labels.tolist() == [0, 1, 2]
    assert torch.equal(data.test.images, torch.stack(list(pixels.values())))


def test_the_annotations_belong_to_the_fingerprint(root):
    write_archive(root)
    before = load(root)
    annotations = root / "val" / "val_annotations.txt"
    lines = annotations.read_text().splitlines()
    swapped = [line.replace(WNIDS[0], "swap").replace(WNIDS[1], WNIDS[0]) for line in lines]
    annotations.write_text("\n".join(line.replace("swap", WNIDS[1]) for line in swapped))
    after = load(root)
    assert after.test.labels.tolist() == [1, 0, 2, 1, 0, 2]
    assert torch.equal(after.test.images, before.test.images)
    assert after.fingerprint != before.fingerprint


@pytest.mark.parametrize("missing", ["train", "val", "val/val_annotations.txt"])
def test_an_incomplete_data_set_is_refused(root, missing):
    write_archive(root)
    (root / missing).rename(root / "elsewhere")
    message = refusal(load, root)
    assert message.startswith((f"dataset.root={root}: ", f"{root / missing}: "))
    assert f"No such file or directory: '{root / missing}'" in message


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda lines: [b"../images/val_1.ppm\tn01443537", *lines], "'../images/val_1.ppm'"),
        (lambda lines: lines[:4], "'val_0.ppm'"),
        (lambda lines: [lines[0].split(b"\t")[0], *lines[1:]], "'val_5.ppm'"),
        (lambda lines: [lines[0].replace(b"n02124075", b"n9"), *lines[1:]], "test set alone: n9"),
        (lambda lines: [b"\xff", *lines], "UTF-8"),
    ],
)
def test_annotations_that_do_not_fit_are_refused(root, change, named):
    write_archive(root)
    annotations = root / "val" / "val_annotations.txt"
    annotations.write_bytes(b"\n".join(change(annotations.read_bytes().splitlines())))
    message = refusal(load, root)
    assert message.startswith((f"{annotations}: ", f"dataset.root={root}: "))
    assert named in message
