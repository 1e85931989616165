"""Checkpoints that are none, or of another network, and the message."""

import json
import zipfile

import pytest
import torch
from safetensors.torch import save, save_file

from lpslim.base.errors import UserError
from lpslim.models import encoders, weights
from lpslim.models.storage import Architecture

NONE = "not a checkpoint of tensors alone, and nothing in it was executed ("


def small():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))


STATE = small().state_dict()


def lying(**changes):
    """Return safetensors whose header says other things of the first tensor."""
    raw = save(STATE)
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header["0.weight"] |= changes
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + raw[8 + length :]


def torch_bytes(content, path, **how):
    torch.save(content, path, **how)
    return path.read_bytes()


def bomb(content, path):
    """Return the same archive, packed, with a record of zeros that unpacks to a thousand times its size."""
    torch.save(content, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, bytes(10_000_000) if name.endswith("data/0") else data)
    return path.read_bytes()


WRONG = {
    "empty.pt": (lambda path: b"", NONE),
    "empty.safetensors": (lambda path: b"", f"{NONE}SafetensorError: "),
    "text.pt": (lambda path: b"these are my weights\n", NONE),
    "text.safetensors": (lambda path: b"these are my weights\n", f"{NONE}SafetensorError: "),
    "page.pth": (lambda path: b"<!DOCTYPE html><html></html>", NONE),
    "cut.pt": (lambda path: torch_bytes(STATE, path)[:700], NONE),
    "cut_legacy.pt": (lambda path: torch_bytes(STATE, path, _use_new_zipfile_serialization=False)[:-9], NONE),
    "cut.safetensors": (lambda path: save(STATE)[:-1], f"{NONE}SafetensorError: "),
    "long.safetensors": (lambda path: save(STATE) + b"x", f"{NONE}SafetensorError: "),
    "other_kind.safetensors": (lambda path: torch_bytes(STATE, path), f"{NONE}SafetensorError: "),
    "other_kind.pt": (lambda path: save(STATE), NONE),
    "bomb.pt": (lambda path: bomb(STATE, path), f"{NONE}ValueError: would unpack to 1000"),
    "larger.safetensors": (lambda path: lying(shape=[400, 3]), f"{NONE}SafetensorError: "),
    "huge.safetensors": (lambda path: lying(shape=[2**62, 2**62]), f"{NONE}SafetensorError: "),
    "negative.safetensors": (lambda path: lying(shape=[-4, -3]), f"{NONE}SafetensorError: "),
    "elsewhere.safetensors": (lambda path: lying(data_offsets=[10**9, 10**9 + 48]), f"{NONE}SafetensorError"),
    "backwards.safetensors": (lambda path: lying(data_offsets=[48, 0]), f"{NONE}SafetensorError"),
    "kind.safetensors": (lambda path: lying(dtype="F33"), f"{NONE}SafetensorError: "),
    "header.safetensors": (lambda path: (2**63).to_bytes(8, "little") + b"{}", f"{NONE}SafetensorError: "),
    "list.pt": (lambda path: torch_bytes([1, 2], path), "holds no tensors by name, nor under state_dict"),
    "tensor.pt": (lambda path: torch_bytes(torch.ones(1), path), "holds no tensors by name"),
    "none.pt": (lambda path: torch_bytes({}, path), "holds no tensors by name"),
    "none.safetensors": (lambda path: save({}), "holds no tensors by name"),
    "numbers.pt": (lambda path: torch_bytes({1: torch.ones(1)}, path), "1 is no name; expected a state dict"),
    "module.pt": (lambda path: torch_bytes(small(), path), NONE),
    "deep.pt": (lambda path: torch_bytes({"state_dict": {"net": [1]}}, path), "'net' is no tensor"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_is_no_checkpoint(name, tmp_path):
    make, message = WRONG[name]
    path = tmp_path / name
    path.write_bytes(make(tmp_path / "made.pt"))
    with pytest.raises(UserError) as refused:
        checkpoints.read(path)
    assert str(refused.value).startswith(f"model.weights={path}: {message}")
    assert "\n" not in str(refused.value)


def with_value(value):
    return {**STATE, "0.weight": torch.full((4, 3), 1.0).index_fill(0, torch.tensor([2]), value)}


def without(name):
    return {key: value for key, value in STATE.items() if key != name}


MISFITS = {
    "a missing key": (without("1.bias"), "does not fit: missing 1.bias"),
    "one too many": ({**STATE, "2.bias": torch.ones(2)}, "does not fit: unexpected 2.bias"),
    "a wrong shape": (
        {**STATE, "1.bias": torch.ones(3)},
        "does not fit: 1.bias: (3,) in the file, (2,) in the network",
    ),
    "a path": ({**STATE, "../../x": torch.ones(1)}, "does not fit: unexpected ../../x"),
    "an enormous view": (
        {**STATE, "1.bias": torch.ones(1).expand(10**9)},
        "does not fit: 1.bias: (1000000000,) in the file, (2,) in the network",
    ),
    "NaN": (with_value(float("nan")), "0.weight holds values that are no finite numbers"),
    "infinity": (with_value(float("inf")), "0.weight holds values that are no finite numbers"),
    "sparse": (
        {**STATE, "1.bias": torch.ones(2).to_sparse()},
        "1.bias holds values that are no finite numbers",
    ),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_weights_that_do_not_fit_leave_the_network_as_it_was(kind, tmp_path):
    state, message = MISFITS[kind]
    torch.save(state, tmp_path / "weights.pt")
    model = small()
    with pytest.raises(UserError) as refused:
        checkpoints.initialise(model, str(tmp_path / "weights.pt"), "", {})
    assert str(refused.value) == f"model.weights={tmp_path / 'weights.pt'}: {message}"
    assert all(torch.equal(value, STATE[name]) for name, value in model.state_dict().items())
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pt"]


def test_half_precision_fits(tmp_path):
    save_file({name: value.half() for name, value in STATE.items()}, tmp_path / "half.safetensors")
    model = small()
    checkpoints.initialise(model, str(tmp_path / "half.safetensors"), "", {})
    assert model[0].weight.dtype == torch.float32


def encoder_folder(folder):
    Architecture("bert", "tiny", (3, 16), {
        "num_classes": 2, "configuration": pretrained.configuration("tiny"),
    }).build().transformer.save_pretrained(folder)  # fmt: skip
    pretrained.tokenizer("tiny").save_pretrained(folder)
    return str(folder)


def weights_of(folder):
    return pretrained.encoder(folder, pretrained._config("tiny", ""))


SPOILT = {
    "no JSON": ("config.json", b"{", pretrained.configuration),
    "a list": ("config.json", b"[]", pretrained.configuration),
    "a type of its own": ("config.json", b'{"model_type": "mine"}', pretrained.configuration),
    "not UTF-8": ("config.json", b"\xff\xfe", pretrained.configuration),
    "half a tokenizer": ("tokenizer.json", b'{"version": "1.0"', pretrained.tokenizer),
    "another tokenizer": ("tokenizer.json", b'{"model": {"type": "mine"}}', pretrained.tokenizer),
    "half the weights": ("model.safetensors", b"\x00" * 20, weights_of),
    "no weights": ("model.safetensors", b"", weights_of),
    "a pickle": ("model.safetensors", b"\x80\x04N.", weights_of),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_a_spoilt_encoder_is_refused(kind, tmp_path):
    name, content, read = SPOILT[kind]
    folder = encoder_folder(tmp_path / "encoder")
    assert pretrained.configuration(folder) == pretrained.configuration("tiny")
    (tmp_path / "encoder" / name).write_bytes(content)
    with pytest.raises(UserError) as refused:
        read(folder)
    assert f"={folder}: " in str(refused.value)
    assert "\n" not in str(refused.value)
