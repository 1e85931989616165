"""Image files as users have them: which are read, what their pixels become, what is said of the others."""

import numpy as np
import pytest
from PIL import Image

from lpslim.data.datasets import cifar, imagefolder
from lpslim.data.decoded import DEEP, list_images, rgb, survey
from tests.data.making import refusal, settings

RAMP = np.linspace(0, 1, 64).reshape(8, 8)
BYTES = np.rint(255 * RAMP).astype(np.uint8)
GREY = {  # pixels between 0 and 1 in files of many kinds
    "8.png": BYTES,
    "16.png": np.rint(65535 * RAMP).astype(np.uint16),
    "16.tif": np.rint(65535 * RAMP).astype(np.uint16),
    "16-big-endian.tif": np.rint(65535 * RAMP).astype(">u2"),
    "16.pgm": np.rint(65535 * RAMP).astype(np.uint16),
    "float.tif": RAMP.astype(np.float32),
}


@pytest.mark.parametrize("name", GREY)
def test_grey_values_of_every_depth_become_the_nearest_bytes(name, tmp_path):
    file = tmp_path / name
    if name == "16.pgm":
        file.write_bytes(b"P5 8 8 65535\n" + GREY[name].astype(">u2").tobytes())
    else:
        Image.fromarray(GREY[name]).save(file)
    with Image.open(file) as image:
        assert (image.mode in DEEP) == (name != "8.png")
    pixels = np.asarray(rgb(file))
    assert pixels.shape == (8, 8, 3)
    assert np.array_equal(pixels, np.stack([BYTES] * 3, axis=-1))
    assert survey([file], False)[1] == ({} if name == "8.png" else {"scaled": True})


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (300 * RAMP.astype(np.float32), "float32 pixels from 0 to 300"),
        (RAMP.astype(np.float32) - 0.5, "float32 pixels from -0.5 to 0.5"),
        (np.full((8, 8), np.nan, np.float32), "float32 pixels from nan to nan"),
        (BYTES.astype(np.int32), "int32 pixels from 0 to 255"),  # or to 65535: who knows
    ],
)
def test_pixels_without_a_known_white_are_refused_with_their_range(pixels, said, tmp_path):
    Image.fromarray(pixels).save(file := tmp_path / "a.tif")
    message = refusal(rgb, file)
    assert message.startswith(f"{file}: cannot be read as an image (ValueError: {said}; must be of 8 or 16 ")


@pytest.mark.parametrize("name", ["RGB.jpg", "RGB.png", "P.png", "RGBA.png", "CMYK.jpg"])
def test_ordinary_images_are_as_pillow_converts_them(name, tmp_path):
    pixels, file = np.stack([BYTES, BYTES.T, 255 - BYTES], axis=-1), tmp_path / name
    Image.fromarray(pixels).convert(file.stem).save(file)
    with Image.open(file) as image:
        assert rgb(file).tobytes() == rgb(file, exif=True).tobytes() == image.convert("RGB").tobytes()


FOUND = ("a.PNG", "b.jfif", "c.gif", "deeper/d.png", "e.jpe", "z.webp")
LEFT = (".DS_Store", "._a.png", "notes.txt", "readme", "x.heic", "y.heic")


def write_class(folder, names=FOUND):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        kind = {"jfif": "jpeg", "jpe": "jpeg"}.get(suffix := name.rpartition(".")[2].lower(), suffix)
        Image.fromarray(BYTES).convert("RGB").save(folder / name, kind)


def test_files_that_are_read_are_found_at_any_depth_and_the_others_are_counted(tmp_path, caplog):
    caplog.set_level("INFO")
    for name in ("dog", "cat", ".ipynb_checkpoints"):
        write_class(tmp_path / "train" / name)
    write_class(tmp_path / "train/cat/.thumbnails")
    write_class(tmp_path / "train", ["beside.png"])
    for name in LEFT:
        (tmp_path / "train/dog" / name).touch()
    (tmp_path / "real").mkdir()
    write_class(tmp_path / "real")
    (tmp_path / "train/eel").symlink_to(tmp_path / "real")
    classes, samples = list_images(tmp_path, "train")
    assert classes == ["cat", "dog", "eel"]
    assert [
        (str(file.relative_to(tmp_path / "train" / classes[label])), label) for file, label in samples
    ] == [(name, label) for label in range(3) for name in sorted(FOUND, key=lambda name: ("/" in name, name))]
    assert all(rgb(file).size == (8, 8) for file, _ in samples)
    counted = "2 .heic, 1 .txt, 1 beside the class folders, 2 hidden, 1 without an ending"
    assert caplog.messages == [f"{tmp_path}/train: left out 7 files: {counted}"]
    for file in (tmp_path / "train/cat").rglob("*.*"):
        file.unlink() if file.is_file() else None
    assert f": no image of cat (left out: {counted}); " in refusal(list_images, tmp_path, "train")


def write_turned(root, splits):
    """Write ten classes of two images, white above; the first of each says that it lies on its side."""
    image = Image.fromarray(np.repeat(np.uint8([255, 0]), 16)[:, None].repeat(32, 1)).convert("RGB")
    sideways = Image.Exif()
    sideways[0x0112] = 6  # to be turned by 90 degrees: white is then on the right
    for split in splits:
        for number in range(20):
            file = root / split / f"class{number // 2}" / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            image.save(file, exif=sideways if number % 2 == 0 else None)


@pytest.mark.parametrize("cache_gb", [0, 1])
@pytest.mark.parametrize("kind", [(imagefolder, "mine", "val"), (cifar, "cifar10", "test")])
def test_exif_rotations_are_counted_and_applied_only_if_asked_for(kind, cache_gb, tmp_path, caplog):
    caplog.set_level("INFO")
    plugin, name, test = kind
    write_turned(root := tmp_path / "images", ("train", test))
    corners, reading, said = [], [], []
    for exif in (False, True):
        caplog.clear()
        chosen = settings(root, name, image_size=32, cache_gb=cache_gb, exif=exif)
        data = plugin.load(chosen, tmp_path / "cache").normalised([0] * 3, [1] * 3)
        reading.append(data.reading)
        said.append([line for line in caplog.messages if "EXIF" in line])
        ((images, _),) = data.test.eval_batches(20)
        corners.append([image[0, 3, 3].item() for image in images])
    assert corners == [[1] * 20, [0, 1] * 10]
    told = "20 of 40 images have an EXIF rotation that is ignored: dataset.exif=true applies it"
    assert said == [[told], []]
    assert reading[1] == {**reading[0], "exif": True}
    assert "exif" not in reading[0]
