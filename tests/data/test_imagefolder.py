"""Image folders streamed from disk: what is read, in which order, and what is refused."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from lpslim.base.errors import UserError
from lpslim.data import imagefolder

CLASSES = ("n01440764", "n01443537")


@pytest.fixture
def root(tmp_path):
    """Ten training and three test images a class, of 12 x 10 pixels, each of one colour of its own."""
    for split, count in (("train", 10), ("val", 3)):
        for label, name in enumerate(CLASSES):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (12, 10), (20 * i, 100 * label, 7)).save(folder / f"{i}.png")
    return tmp_path


def load(root, **changes):
    settings = {"name": "mine", "root": str(root), "image_size": 8, "val_fraction": 0.2, "flip": True,
                "workers": 0, "store_gb": 0, **changes}  # fmt: skip
    return imagefolder.load(SimpleNamespace(**settings), root / "cache")


def test_splits_classes_and_shape(root):
    data = load(root)
    assert (len(data.train), len(data.val), len(data.test)) == (16, 4, 6)
    assert (data.num_classes, data.shape, data.name) == (2, (3, 8, 8), "mine")
    images, labels = next(data.test.eval_batches(6))
    assert images.shape == (6, 3, 8, 8)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_pixels_are_those_of_the_files_in_imagenets_units(root):
    images, _ = next(load(root).test.eval_batches(2))
    expected = (torch.tensor([20, 0, 7]) / 255 - torch.tensor(imagefolder.MEAN)) / torch.tensor(
        imagefolder.STD
    )
    torch.testing.assert_close(images[1, :, 4, 4], expected)


def test_an_epoch_follows_from_its_seed_and_shows_each_image_once(root):
    split = load(root).train

    def epoch(seed):
        torch.manual_seed(1)
        return torch.cat([images.mean((2, 3)) for images, _ in split.train_batches(4, seed)])

    one, again, other = epoch(3), epoch(3), epoch(4)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert len(one.round(decimals=3).unique(dim=0)) == 16
    assert torch.equal(one.sort(0).values.round(decimals=3), other.sort(0).values.round(decimals=3))


def test_the_fingerprint_is_of_names_and_sizes(root, tmp_path):
    before = load(root).fingerprint
    assert before == load(root, image_size=4, workers=1).fingerprint
    (root / "val" / CLASSES[0] / "0.png").rename(root / "val" / CLASSES[0] / "zero.png")
    assert load(root).fingerprint != before


def test_what_is_no_such_folder_is_refused(root):
    with pytest.raises(UserError, match=r"^dataset\.root=.*nowhere: no images there\. Expected"):
        load(root / "nowhere")
    (root / "val" / CLASSES[1]).rename(root / "val" / "other")
    with pytest.raises(UserError, match="train and val do not hold the same classes"):
        load(root)


def test_images_are_not_blown_up(root):
    with pytest.raises(UserError) as refused:
        load(root, image_size=224)
    assert str(refused.value) == (f"dataset.image_size=224: must be at most 10, the size of images in {root}")
    assert load(root, image_size=10).shape == (3, 10, 10)


def test_a_file_that_is_no_image_is_named(root):
    broken = root / "train" / CLASSES[0] / "0.png"
    broken.write_bytes(b"not an image")
    with pytest.raises(UserError, match=f"^{broken}: cannot be read as an image"):
        load(root)
