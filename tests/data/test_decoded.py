"""Images decoded once: the bits of those that are streamed, whatever became of the store in the meantime."""

import itertools
import logging
import multiprocessing
import os
import pickle
import re
import resource
import shutil
import signal
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from lpslim.failures import reason
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

from lpslim.base.errors import UserError
from lpslim.data import decoded, imagefolder
from lpslim.data.splits import Share

CLASSES = ("n01440764", "n01443537", "n01484850")
MODES = {"a.jpg": "RGB", "b.jpeg": "L", "c.png": "P", "d.png": "RGBA", "e.jpg": "CMYK"}


@pytest.fixture
def root(tmp_path):
    """Noise in 15 training and 9 test images, no two of one size, in all modes met in such folders."""
    generator = torch.Generator().manual_seed(0)
    sides = itertools.count(30)
    for split, count in (("train", 5), ("val", 3)):
        for name in CLASSES:
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for file, mode in list(MODES.items())[:count]:
                size = (next(sides), 70 - next(sides) % 31, 3)
                noise = torch.randint(256, size, generator=generator, dtype=torch.uint8)
                Image.fromarray(noise.numpy()).convert(mode).save(folder / file)
    return tmp_path / "images"


def load(root, workers=0, store_gb=1.0):
    settings = {"name": "mine", "root": str(root), "image_size": 16, "val_fraction": 0.2, "flip": True,
                "workers": workers, "store_gb": store_gb}  # fmt: skip
    return imagefolder.load(SimpleNamespace(**settings), root.parent / "cache")


def batches(data, share=Share()):  # noqa: B008 - it is frozen
    """Return all batches of an epoch and of both evaluations."""
    torch.manual_seed(7)
    drawn = list(data.train.train_batches(4, 3, share))
    drawn += [*data.val.eval_batches(2, share), *data.test.eval_batches(4, share)]
    return [tensor for batch in drawn for tensor in batch]


def same(one, other):
    return len(one) == len(other) > 0 and all(map(torch.equal, one, other))


def stores(root):
    return [path for path in (root.parent / "cache").glob("*") if path.is_dir()]


@pytest.mark.parametrize("workers", [0, 2])
def test_stored_images_are_the_bits_of_streamed_ones(root, workers):
    streamed, stored = load(root, workers, 0), load(root, workers)
    assert (stored.fingerprint, stored.reading) == (streamed.fingerprint, streamed.reading)
    for share in (Share(), Share(0, 2), Share(1, 2)):
        expected = batches(streamed, share)
        assert same(batches(stored, share), expected)
        assert same(batches(load(root, workers), share), expected)
    (folder,) = stores(root)
    assert {file.name for file in folder.iterdir()} == {"pixels", "index.safetensors"}


def test_workers_that_are_spawned_read_it_too(root, monkeypatch):
    expected = batches(load(root, 1, 0))
    stored = load(root, 1)
    assert same(batches(stored), expected)
    monkeypatch.setattr(imagefolder, "DataLoader", partial(DataLoader, multiprocessing_context="spawn"))
    labels = [labels for _, labels in stored.test.eval_batches(4)]
    assert torch.cat(labels).tolist() == [0] * 3 + [1] * 3 + [2] * 3


def test_what_goes_to_a_worker_is_where_the_pixels_are_and_not_the_pixels(root):
    found = load(root).train.decoded()
    sent = len(pickle.dumps(found))
    assert len(pickle.loads(pickle.dumps(load(root).train))) == 12
    assert sent < 3_000 < found.file.stat().st_size
    assert found._mapped.filename == found.file  # a mapping, read where it lies


def test_nothing_is_decoded_until_a_batch_is_wanted_and_then_everything_once(root, monkeypatch):
    decoded = []
    monkeypatch.setattr(pixels, "rgb", lambda file, rgb=pixels.rgb: decoded.append(file) or rgb(file))
    data = load(root)
    assert not (root.parent / "cache").exists()
    batches(data)
    batches(load(root))
    assert sorted(decoded) == sorted(file for file in root.rglob("*.*"))


def test_making_a_store_draws_no_random_number(root):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    load(root, workers=2).train.decoded()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("change", ["touched", "added", "another Pillow"])
def test_another_folder_or_decoder_has_another_store(root, change, monkeypatch):
    batches(load(root))
    if change == "touched":
        os.utime(root / "val" / CLASSES[0] / "a.jpg", ns=(1, 1))
    elif change == "added":
        Image.new("RGB", (40, 40)).save(root / "val" / CLASSES[0] / "z.png")
    else:
        monkeypatch.setattr(pixels.PIL, "__version__", "99.0")
    assert same(batches(load(root)), batches(load(root, store_gb=0)))
    assert len(stores(root)) == 2


# What does not fit


def test_it_is_streamed_and_said_once_where_it_would_be_too_large(root, caplog):
    caplog.set_level(logging.INFO)
    expected = batches(load(root, store_gb=0))
    assert caplog.text == ""
    data = load(root, store_gb=1e-6)
    assert same(batches(data), expected)
    assert same(batches(data), expected)
    assert stores(root) == []
    (said,) = (record.getMessage() for record in caplog.records)
    assert re.fullmatch(
        rf"{root}: every epoch decodes its images anew; decoded, all would take 0\.000\d+ GB, "
        r"and dataset\.store_gb=1e-06", said
    )  # fmt: skip


def test_the_size_of_the_store_is_foretold(root, monkeypatch):
    batches(load(root))
    (folder,) = stores(root)
    exact = (folder / "pixels").stat().st_size / 1e9
    shutil.rmtree(folder)
    assert load(root, store_gb=0.999 * exact).train.decoded() is None
    assert load(root, store_gb=1.001 * exact).train.decoded()
    monkeypatch.setattr(pixels, "MEASURED", 8)  # one image of three
    assert load(root, store_gb=0.7 * exact).train.decoded() is None
    assert load(root, store_gb=1.3 * exact).train.decoded()


def test_it_is_streamed_where_the_disk_has_no_room_for_twice_the_store(root, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    expected = batches(load(root))
    (folder,) = stores(root)
    size = (folder / "pixels").stat().st_size
    for free, streamed in ((1.9 * size, True), (2.1 * size, False)):
        shutil.rmtree(folder, ignore_errors=True)
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        caplog.clear()
        assert same(batches(load(root)), expected)
        assert (stores(root) == []) == streamed == ("GB free, not twice that" in caplog.text)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    assert load(root).train.decoded()  # it is there already


# What goes wrong while it is made


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_decoded_is_named_and_nothing_is_left(root, workers):
    data = load(root, workers)
    broken = root / "val" / CLASSES[2] / "a.jpg"
    broken.write_bytes(broken.read_bytes()[:700])
    with pytest.raises(UserError, match=f"^{broken}: cannot be read as an image [^\n]*$"):
        next(data.train.train_batches(4, 0))
    assert [path.suffix for path in (root.parent / "cache").iterdir()] == [".lock"]


def test_the_lock_is_free_again_though_the_failure_is_remembered(root):
    broken = root / "val" / CLASSES[2] / "a.jpg"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:700])
    with pytest.raises(UserError) as remembered:  # its traceback keeps the workers, which share the lock
        load(root, workers=2).train.decoded()
    broken.write_bytes(whole)
    assert load(root).train.decoded()
    assert remembered


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_is_gone_is_told(root, workers, monkeypatch):
    monkeypatch.setattr(pixels, "MEASURED", 8)  # not the one that is gone
    data = load(root, workers)
    monkeypatch.setattr(pixels, "listing_digest", lambda root, files: "0" * 64)
    (root / "val" / CLASSES[2] / "a.jpg").unlink()
    with pytest.raises(FileNotFoundError) as problem:
        next(data.train.train_batches(4, 0))
    assert reason(problem.value)[1].startswith("put back what is missing")


def test_a_full_disk_is_told_and_nothing_is_left(root):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
    try:
        with pytest.raises(OSError, match="store_gb") as problem:
            load(root).train.decoded()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    happened, remedy = reason(problem.value)
    assert re.fullmatch(r"File too large \(dataset\.store_gb=0 does without this file\): .*/pixels", happened)
    assert remedy == "free some space"
    assert [path.suffix for path in (root.parent / "cache").iterdir()] == [".lock"]


FORK = multiprocessing.get_context("fork")


def killed(root, workers, moment, patched=pixels):
    """Make the store in a process that kills itself at the n-th call of what is named."""
    name, number = moment
    calls, original = itertools.count(1), getattr(patched, name)

    def fatal(*arguments):
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments)

    def work():
        setattr(patched, name, fatal)
        load(root, workers).train.decoded()

    process = FORK.Process(target=work)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("moment", [("_check", 1), ("_check", 20), ("save", 1)])
def test_a_maker_that_is_killed_leaves_nothing_that_is_believed(root, workers, moment):
    killed(root, workers, moment)
    (left,) = stores(root)
    assert left.name.startswith(".")
    assert same(batches(load(root)), batches(load(root, store_gb=0)))
    assert stores(root) != [left]
    assert len(stores(root)) == 1  # what was left is gone


def test_of_many_processes_one_decodes_and_the_others_find_it(root, tmp_path):
    notes = tmp_path / "notes"

    def work():
        original = pixels._Arrays.__getitem__

        def noted(self, index):
            with open(notes, "a") as file:
                file.write(f"{index}\n")
            return original(self, index)

        pixels._Arrays.__getitem__ = noted
        found = load(root, workers=1).test.decoded()
        os._exit(0 if found.image(8) else 1)

    processes = [FORK.Process(target=work) for _ in range(4)]
    for each in processes:
        each.start()
    for each in processes:
        each.join()
    assert [each.exitcode for each in processes] == [0] * 4
    assert [int(line) for line in notes.read_text().splitlines()] == list(range(24))


# What becomes of it afterwards


def change_index(folder, change):
    index = load_file(folder / "index.safetensors")
    change(index)
    save_file(index, folder / "index.safetensors")


def flipped(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


UNSOUND = {
    "pixels cut": lambda f: os.truncate(f / "pixels", 1000),
    "pixels longer": lambda f: os.truncate(f / "pixels", 10**6),
    "pixels gone": lambda f: (f / "pixels").unlink(),
    "index cut": lambda f: os.truncate(f / "index.safetensors", 99),
    "index empty": lambda f: os.truncate(f / "index.safetensors", 0),
    "index gone": lambda f: (f / "index.safetensors").unlink(),
    "index is text": lambda f: (f / "index.safetensors").write_text("x" * 999),
    "index lacks a part": lambda f: change_index(f, lambda index: index.pop("checks")),
    "fewer images": lambda f: change_index(f, lambda index: index.update(sizes=index["sizes"][:-1].clone())),
    "other numbers": lambda f: change_index(f, lambda index: index.update(sizes=index["sizes"].double())),
    "another size": lambda f: change_index(f, lambda index: index["sizes"].__setitem__((3, 0), 999)),
    "no size": lambda f: change_index(f, lambda index: index["sizes"].mul_(-1)),
}


@pytest.mark.parametrize("harm", UNSOUND)
def test_a_store_that_cannot_be_right_is_made_again(root, harm, caplog):
    expected, data = batches(load(root)), load(root)
    (folder,) = stores(root)
    written = {file.name: file.read_bytes() for file in folder.iterdir()}
    UNSOUND[harm](folder)
    assert same(batches(data), expected)
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warned == [f"{folder}: is damaged, and made again"]
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == written


WRONG = {
    "a bit": lambda f: flipped(f / "pixels", 20_000),
    "zeros": lambda f: (f / "pixels").write_bytes(bytes((f / "pixels").stat().st_size)),
    "width for height": lambda f: change_index(f, lambda index: index.update(sizes=index["sizes"].flip(1))),
    "a check": lambda f: change_index(f, lambda index: index["checks"].__setitem__(5, 0)),
}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("harm", WRONG)
def test_an_image_that_is_not_what_was_written_is_decoded_anew(root, harm, workers, caplog):
    expected = batches(load(root, workers))
    (folder,) = stores(root)
    WRONG[harm](folder)
    assert same(batches(load(root, workers)), expected)
    assert workers or f"{folder}/pixels: is damaged; what is lost is decoded anew" in caplog.text


def test_a_store_that_is_deleted_between_epochs_is_made_again(root):
    data = load(root)
    expected = batches(data)
    shutil.rmtree(*stores(root))
    assert same(batches(data), expected)
    assert len(stores(root)) == 1
