"""Images decoded once: the bits of those decoded in every epoch, whatever became of the files meanwhile."""

import itertools
import multiprocessing
import os
import pickle
import resource
import signal

import pytest
import torch
from PIL import Image

from lpslim.data import decoded
from lpslim.data.datasets import imagefolder
from lpslim.data.decoded import decode, rgb
from lpslim.data.splits import Share
from tests.data.making import noise, refusal, settings, write_image

CLASSES = ("n01440764", "n01443537", "n01484850")
MODES = {"a.jpg": "RGB", "b.jpeg": "L", "c.png": "P", "d.png": "RGBA", "e.jpg": "CMYK"}


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


def batches(data, share=Share()):  # noqa: B008 - it is immutable
    """Return all tensors of an epoch and of both evaluations."""
    torch.manual_seed(7)
    drawn = list(data.train.train_batches(4, 3, share))
    drawn += [*data.val.eval_batches(2, share), *data.test.eval_batches(4, share)]
    return [tensor for batch in drawn for tensor in batch]


def same(one, other):
    return len(one) == len(other) > 0 and all(map(torch.equal, one, other))


def stored(root):
    return sorted((root.parent / "cache").glob("[!.]*/pixels"))


def files(root):
    return sorted(file for file in root.rglob("*") if file.is_file())


def decode_all(root):
    return decode(root, files(root), root.parent / "cache", workers=2)


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


def test_every_image_is_decoded_once_and_read_from_its_place(root, monkeypatch):
    opened, state = [], torch.get_rng_state()
    monkeypatch.setattr(decoded, "rgb", lambda file, *more: opened.append(file) or rgb(file, *more))
    for _ in range(2):
        images = decode_all(root)
        assert [images.image(i).tobytes() for i in range(24)] == [rgb(f).tobytes() for f in files(root)]
    assert sorted(opened) == files(root)
    assert torch.equal(torch.get_rng_state(), state)
    sent = pickle.dumps(images)  # to a worker: the place of the pixels and not the pixels
    assert len(sent) < 3_000 < images.pixels.stat().st_size
    assert pickle.loads(sent).image(8).tobytes() == images.image(8).tobytes()


def test_another_folder_or_decoder_has_another_file(root, monkeypatch):
    batches(load(root))
    file = root / "val" / CLASSES[0] / "z.png"
    changes = [lambda: Image.new("RGB", (40, 40)).save(file), lambda: os.utime(file, ns=(1, 1)),
               lambda: monkeypatch.setattr(decoded.PIL, "__version__", "99.0")]  # fmt: skip
    for number, change in enumerate(changes, 2):
        change()
        assert same(batches(load(root)), batches(load(root, cache_gb=0)))
        assert len(stored(root)) == number


def test_a_file_that_would_be_too_large_is_not_made_and_that_is_said(root, caplog):
    caplog.set_level("INFO")
    exact = sum(3 * rgb(file).width * rgb(file).height for file in files(root)) / 1e9
    expected = batches(load(root, cache_gb=0.999 * exact))
    assert not stored(root)
    (said,) = (record.getMessage() for record in caplog.records)
    assert all(part in said for part in (str(root), f"{exact:.3g} GB", "dataset.cache_gb"))
    assert same(batches(load(root, cache_gb=1.001 * exact)), expected)
    assert len(stored(root)) == 1


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cache_gb", [0.0, 1.0])
def test_an_image_that_cannot_be_decoded_is_named_and_nothing_is_left(root, workers, cache_gb):
    broken = root / "val" / CLASSES[2] / "a.jpg"
    data = load(root, workers, cache_gb)
    broken.write_bytes(broken.read_bytes()[:700])
    message = refusal(lambda: list(data.test.eval_batches(9)))
    assert message.startswith(f"{broken}: cannot be read as an image (OSError: ")
    assert {file.suffix for file in root.parent.glob("cache/*")} <= {".lock"}


def test_a_disk_that_is_full_is_named_and_nothing_is_left(root):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
    with pytest.raises(OSError, match=r"too large: .*/cache/"):
        decode_all(root)
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [file.suffix for file in (root.parent / "cache").iterdir()] == [".lock"]


def forked(work, count):
    """Return the exit codes of so many processes that do the same work at once."""
    processes = [multiprocessing.get_context("fork").Process(target=work) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def test_a_process_that_is_killed_while_making_it_leaves_nothing_that_is_believed(root, monkeypatch):
    left = iter(range(19))

    def read(file, *_):
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return rgb(file)

    monkeypatch.setattr(decoded, "rgb", read)
    assert forked(lambda: decode_all(root), 1) == [-signal.SIGKILL]
    monkeypatch.undo()
    assert not stored(root)
    assert list((root.parent / "cache").glob(".*"))
    assert same(batches(load(root)), batches(load(root, cache_gb=0)))
    assert not list((root.parent / "cache").glob(".*"))  # what was left is gone


def test_of_many_processes_one_decodes_and_the_others_find_it(root, tmp_path, monkeypatch):
    def noted(file, *_):
        with open(tmp_path / "notes", "a") as notes:
            notes.write(f"{file}\n")
        return rgb(file)

    monkeypatch.setattr(decoded, "rgb", noted)
    assert forked(lambda: os._exit(0 if decode_all(root).image(8) else 1), 4) == [0] * 4
    assert sorted((tmp_path / "notes").read_text().split()) == sorted(map(str, files(root)))


@pytest.mark.parametrize("name", ["pixels", "index.safetensors"])
@pytest.mark.parametrize("size", [None, 0, 100, 10**6])  # None: gone
def test_a_damaged_cache_is_noticed_and_made_again(root, name, size, caplog):
    expected = batches(load(root))
    (path,) = stored(root)
    damaged, written = path.with_name(name), path.read_bytes()
    damaged.unlink() if size is None else os.truncate(damaged, size)
    assert same(batches(load(root)), expected)
    assert path.read_bytes() == written
    assert f"{path.parent}: is damaged" in caplog.text
