"""Nothing that a file says is executed, wherever it is loaded from."""

import json
import os
import pickle
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torchvision.datasets import CIFAR10

from lpslim import architecture, checkpoints, pretrained
from lpslim.architecture import Architecture
from lpslim.data import cifar
from lpslim.errors import UserError


class Hostile:
    """Makes a folder when it is unpickled: the proof that something ran."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


def payloads(ran):
    return {
        "a call": Hostile(os.mkdir, str(ran)),
        "a shell": Hostile(os.system, f"mkdir {ran}"),
        "an expression": Hostile(eval, f"__import__('os').mkdir({str(ran)!r})"),
        "a getattr": Hostile(getattr, ran, "mkdir"),
        "a load": Hostile(torch.load, str(ran)),
    }


WRAPPINGS = {
    "bare": lambda bad: bad,
    "a value": lambda bad: {"w": bad},
    "state_dict": lambda bad: {"state_dict": {"w": torch.ones(1), "v": bad}},
    "beside": lambda bad: {"state_dict": {"w": torch.ones(1)}, "epoch": bad},
    "nested": lambda bad: {"model": {"state_dict": {"w": [bad]}}},
}


@pytest.mark.parametrize("payload", payloads(""))
@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("form", ["w.pt", "legacy.pth", "plain.pkl", "w.safetensors"])
def test_no_pickle_is_executed(payload, wrapping, form, tmp_path):
    ran, path = tmp_path / "ran", tmp_path / form
    content = WRAPPINGS[wrapping](payloads(ran)[payload])
    if form == "plain.pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form != "legacy.pth")
    with pytest.raises(UserError, match="and nothing in it was executed"):
        checkpoints.read(path)
    assert not ran.exists()


def test_the_payloads_do_execute_where_pickle_is_trusted(tmp_path):
    pickle.loads(pickle.dumps(payloads(tmp_path / "ran")["a shell"]))
    assert (tmp_path / "ran").is_dir()


def test_a_batch_of_cifar_that_was_changed_is_not_unpickled(tmp_path):
    folder = tmp_path / "data" / CIFAR10.base_folder
    folder.mkdir(parents=True)
    for name, _ in [*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], "")]:
        (folder / name).write_bytes(pickle.dumps(payloads(tmp_path / "ran")["a call"]))
    settings = SimpleNamespace(name="cifar10", root=str(tmp_path / "data"), download=False)
    with pytest.raises(UserError, match="no cifar10 there"):
        cifar.load(settings, tmp_path / "cache")
    assert not (tmp_path / "ran").exists()


def test_an_archive_of_cifar_that_was_changed_is_not_unpacked(tmp_path, monkeypatch):
    import tarfile

    (tmp_path / "evil").write_text("x")
    archive = tmp_path / "data" / CIFAR10.filename
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "evil", arcname="../climbed")
    (tmp_path / "evil").unlink()
    monkeypatch.setattr("urllib.request.urlopen", refuse)  # it would be fetched anew: there is no network
    settings = SimpleNamespace(name="cifar10", root=str(archive.parent), download=True)
    with pytest.raises(UserError, match="no cifar10 there"):
        cifar.load(settings, tmp_path / "cache")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def refuse(*_, **__):
    raise OSError("no network in tests")


# ---- encoders: settings of a network must not name code


def described(folder, **configuration):
    settings = {**pretrained.configuration("tiny"), **configuration}
    network = Architecture("bert", "tiny", (3, 16), {"num_classes": 2, "configuration": settings})
    architecture.store.write_json(folder / "architecture.json", {"format": 1, **vars(network)})
    save_file({"w": torch.ones(1)}, folder / "weights.safetensors")
    return folder


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("auto_map", {"AutoModelForSequenceClassification": "mine.Model"}),
        ("auto_map", "mine.Model"),
        ("attn_implementation", "somebody/kernel"),
        ("_attn_implementation", "somebody/kernel"),
        ("_attn_implementation_internal", "somebody/kernel"),
        ("trust_remote_code", True),
        ("custom_pipelines", "x"),
        ("quantization_config", "x"),
        ("torch_dtype", "float16"),
        ("num_labels", 10**9),
        ("model_type", "gpt2"),
        ("hidden_act", "os.system"),
    ],
)
def test_no_setting_of_an_encoder_can_name_code(setting, value, tmp_path):
    with pytest.raises(UserError, match=rf"configuration\.{setting}"):
        architecture.load(described(tmp_path, **{setting: value}))


def test_an_encoders_own_folder_brings_no_code(tmp_path):
    pretrained._config("tiny", "").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    code = f"import os; os.mkdir({str(tmp_path / 'ran')!r})\n"
    (tmp_path / "mine.py").write_text(code)
    own = {"AutoConfig": "mine.Config", "AutoModelForSequenceClassification": "mine.Model",
           "AutoTokenizer": ["mine.Tokenizer", None]}  # fmt: skip
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": own, "num_labels": 2}))
    assert "auto_map" not in pretrained.configuration(str(tmp_path))
    path.write_text(json.dumps({"model_type": "mine", "auto_map": own}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"auto_map": own}))
    for read in (pretrained.configuration, pretrained.tokenizer):
        with pytest.raises(UserError, match="cannot be loaded"):
            read(str(tmp_path))
    assert not (tmp_path / "ran").exists()
