"""Images decoded once: the bits of those decoded in every epoch, whatever became of the file meanwhile."""

import itertools
import logging
import multiprocessing
import os
import pickle
import resource
import signal
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lpslim.data import decoded
from lpslim.data.datasets import imagefolder
from lpslim.data.decoded import ImageCache, rgb
from lpslim.data.splits import Share
from tests.data.making import noise, refusal, settings, write_image

CLASSES = ("n01440764", "n01443537", "n01484850")
MODES = {"a.jpg": "RGB", "b.jpeg": "L", "c.png": "P", "d.png": "RGBA", "e.jpg": "CMYK"}
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def root(tmp_path):
    """Noise in 15 training and 9 test images, no two of one size, in all modes met in such folders."""
    sides = itertools.count(30)
    for split, count in (("train", 5), ("val", 3)):
        for name in CLASSES:
            for file, mode in list(MODES.items())[:count]:
                pixels = noise(1, next(sides), 70 - next(sides) % 31, seed=next(sides))[0]
                write_image(tmp_path / "images" / split / name / file, pixels, mode)
    return tmp_path / "images"


def load(root, workers=0, cache_gb=1.0):
    changes = {"val_fraction": 0.2, "workers": workers, "cache_gb": cache_gb}
    return imagefolder.load(settings(root, **changes), root.parent / "cache")


def batches(data, share=Share()):  # noqa: B008 - it is frozen
    """Return all tensors of an epoch and of both evaluations."""
    torch.manual_seed(7)
    drawn = list(data.train.train_batches(4, 3, share))
    drawn += [*data.val.eval_batches(2, share), *data.test.eval_batches(4, share)]
    return [tensor for batch in drawn for tensor in batch]


def same(one, other):
    return len(one) == len(other) > 0 and all(map(torch.equal, one, other))


def stored(root):
    return sorted((root.parent / "cache").glob("*.safetensors"))


def cache_of(root, **options):
    files = sorted(file for file in root.rglob("*") if file.is_file())
    return ImageCache(root, files, root.parent / "cache", **options)


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_equal_those_decoded_in_every_epoch_to_the_bit(root, workers):
    streaming, cached = load(root, workers, 0), load(root, workers)
    assert (cached.fingerprint, cached.reading) == (streaming.fingerprint, streaming.reading)
    assert not stored(root)  # nothing is decoded until a batch is wanted
    for share in (Share(), Share(1, 2)):
        expected = batches(streaming, share)
        assert same(batches(cached, share), expected)
        assert same(batches(load(root, workers), share), expected)
    assert len(stored(root)) == 1


def test_the_file_is_a_safetensors_file_of_all_pixels(root):
    cache = cache_of(root)
    images = cache.load()
    tensors = load_file(stored(root)[0])
    for number, file in enumerate(cache.files):
        expected = rgb(file)
        assert images.image(number).tobytes() == expected.tobytes()
        height, width, start, _ = tensors["index"][number].tolist()
        assert (width, height) == expected.size
        assert tensors["pixels"][start : start + 3 * height * width].numpy().tobytes() == expected.tobytes()


def test_workers_get_the_place_of_the_pixels_and_not_the_pixels(root):
    images = load(root).test.decoded()
    sent = pickle.dumps(images)
    assert len(sent) < 3_000 < images.path.stat().st_size
    assert pickle.loads(sent).image(8).tobytes() == images.image(8).tobytes()


def test_making_the_file_draws_no_random_number_and_decodes_every_image_once(root, monkeypatch):
    opened = []
    monkeypatch.setattr(decoded, "rgb", lambda file, size: opened.append(file) or rgb(file, size))
    state = torch.get_rng_state()
    for _ in range(2):
        cache_of(root, workers=2).load()
    assert torch.equal(torch.get_rng_state(), state)
    assert sorted(opened) == cache_of(root).files


@pytest.mark.parametrize("change", ["touched", "added", "another Pillow"])
def test_another_folder_or_decoder_has_another_file(root, change, monkeypatch):
    batches(load(root))
    if change == "touched":
        os.utime(root / "val" / CLASSES[0] / "a.jpg", ns=(1, 1))
    elif change == "added":
        Image.new("RGB", (40, 40)).save(root / "val" / CLASSES[0] / "z.png")
    else:
        monkeypatch.setattr(decoded.PIL, "__version__", "99.0")
    assert same(batches(load(root)), batches(load(root, cache_gb=0)))
    assert len(stored(root)) == 2


def test_a_file_that_would_be_too_large_is_not_made_and_that_is_said_once(root, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    exact = sum(3 * rgb(file).width * rgb(file).height for file in cache_of(root).files) / 1e9
    data = load(root, cache_gb=0.999 * exact)
    expected = batches(load(root, cache_gb=0))
    caplog.clear()
    assert same(batches(data), expected)
    assert same(batches(data), expected)
    (said,) = (record.getMessage() for record in caplog.records)
    assert all(part in said for part in (str(root), f"{exact:.3g} GB", "dataset.cache_gb="))

    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1.9e9 * exact))
    assert same(batches(load(root)), expected)
    assert "GB free" in caplog.text
    assert not stored(root)
    monkeypatch.undo()
    assert same(batches(load(root, cache_gb=1.001 * exact)), expected)
    assert len(stored(root)) == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_decoded_is_named_and_nothing_is_left(root, workers):
    broken = root / "val" / CLASSES[2] / "a.jpg"
    for cache_gb in (1.0, 0.0):
        data = load(root, workers, cache_gb)
        whole = broken.read_bytes()
        broken.write_bytes(whole[:700])
        message = refusal(lambda data=data: list(data.test.eval_batches(9)))
        assert message.startswith(f"{broken}: cannot be read as an image (OSError: ")
        broken.write_bytes(whole)
    assert {file.suffix for file in (root.parent / "cache").iterdir()} == {".lock"}


def test_a_disk_that_is_full_is_named_and_nothing_is_left(root):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"too large: .*cache/.*safetensors"):
            load(root).train.decoded()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [file.suffix for file in (root.parent / "cache").iterdir()] == [".lock"]


def forked(work):
    process = FORK.Process(target=work)
    process.start()
    return process


def test_a_process_that_is_killed_while_making_it_leaves_nothing_that_is_believed(root):
    calls = itertools.count(1)

    def fatal(file, size):
        if next(calls) == 20:
            os.kill(os.getpid(), signal.SIGKILL)
        return rgb(file, size)

    def work():
        decoded.rgb = fatal
        load(root).train.decoded()

    process = forked(work)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not stored(root)
    assert list((root.parent / "cache").glob(".*"))
    assert same(batches(load(root)), batches(load(root, cache_gb=0)))
    assert not list((root.parent / "cache").glob(".*"))  # what was left is gone


def test_of_many_processes_one_decodes_and_the_others_find_it(root, tmp_path):
    def noted(file, size):
        with open(tmp_path / "notes", "a") as notes:
            notes.write(f"{file}\n")
        return rgb(file, size)

    def work():
        decoded.rgb = noted
        os._exit(0 if load(root).test.decoded().image(8) else 1)

    processes = [forked(work) for _ in range(4)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert sorted((tmp_path / "notes").read_text().split()) == sorted(map(str, cache_of(root).files))


def overwrite(position, content):
    def harm(path):
        with open(path, "r+b") as file:
            file.seek(position, 0 if position >= 0 else 2)
            file.write(content)

    return harm


HARM = {
    "gone": lambda path: path.unlink(),
    "cut": lambda path: os.truncate(path, 30_000),
    "longer": lambda path: os.truncate(path, 10**6),
    "empty": lambda path: os.truncate(path, 0),
    "text": lambda path: path.write_text("x" * 9999),
    "zeros in the header": overwrite(0, bytes(1024)),
    "zeros in the index": overwrite(1024, bytes(24 * 32)),
    "noise in the index": overwrite(1024, noise(1, 24, 32, 1).numpy().tobytes()),
    "zeros at the end": overwrite(-20_000, bytes(20_000)),
    "a bit": overwrite(-1000, b"\x07\xf8"),
}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("harm", HARM)
def test_a_damaged_file_is_noticed_and_made_again(root, harm, workers, caplog):
    data = load(root, workers)
    expected = batches(data)
    (path,) = stored(root)
    written = path.read_bytes()
    HARM[harm](path)
    assert same(batches(data), expected)
    assert same(batches(data), expected)
    assert path.read_bytes() == written
    assert workers or harm == "gone" or f"{path}: is damaged" in caplog.text
