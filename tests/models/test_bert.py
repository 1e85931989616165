"""Heads and neurons: removing them is exact, costs what was foreseen, and leaves the rest alone."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import nn

from lpslim.base.errors import UserError
from lpslim.base.modules import example_input
from lpslim.models import encoders, storage
from lpslim.models import family as families
from lpslim.models.storage import Architecture
from lpslim.pruning import criteria
from lpslim.pruning.budget import Budget, candidates
from lpslim.pruning.cost import CostModel, count, layer_costs

BERT = families.get("bert")
LENGTHS = (12, 7, 3, 9)
CLASSES = ("Bert", "Roberta", "Electra", "MPNet", "DistilBert")
KINDS = {name.lower(): getattr(transformers, f"{name}Config") for name in CLASSES}
SPECIAL = {"roberta": {"type_vocab_size": 1, "pad_token_id": 1}, "electra": {"embedding_size": 24},
           "distilbert": {"hidden_dim": 40, "activation": "relu"}}  # fmt: skip


def configuration(kind="bert", **changes):
    built = KINDS[kind](
        vocab_size=90, hidden_size=48, num_hidden_layers=3, num_attention_heads=6, intermediate_size=40,
        max_position_embeddings=40, **SPECIAL.get(kind, {}),
    )  # fmt: skip
    settings = {key: value for key, value in built.to_diff_dict().items() if key in encoders.SETTINGS}
    return {**settings, **changes}


def network(kind="bert"):
    """Return a classifier in float64 whose every part has a say."""
    torch.manual_seed(0)
    model = BERT.build("any", num_classes=3, configuration=configuration(kind)).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def padded():
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
    orders = {unit.layer: torch.randperm(unit.size, generator=generator) for unit in units}
    return {layer: order[: len(order) // 2].sort().values.tolist() for layer, order in orders.items()}


def silenced(model, units, kept):
    """Return a copy in which what the removed units send on is multiplied by zero."""
    model = copy.deepcopy(model)
    for unit in units:
        gone = set(range(unit.size)) - set(kept[unit.layer])
        columns = [number * unit.head_dim + i for number in gone for i in range(unit.head_dim)]
        for name in unit.consumers:
            model.get_submodule(name).weight.data[:, columns] = 0
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parts", ["heads", "neurons", "both"])
def test_a_pruned_network_equals_the_silenced_one_with_padding_in_the_batch(kind, parts):
    model, texts = network(kind), padded()
    asked = {"heads": {True}, "neurons": {False}, "both": {True, False}}[parts]
    units = [unit for unit in BERT.units(model) if (unit.head_dim > 1) in asked]
    kept = half(units)
    masked = silenced(model, units, kept)
    cut = copy.deepcopy(model)
    BERT.cut(cut, None, kept)
    assert (cut(texts) - masked(texts)).abs().max() < 1e-12
    assert (cut(texts) - model(texts)).abs().max() > 1e-3
    again = {unit.layer: [0, unit.size - 1] for unit in BERT.units(cut) if unit.layer in kept}
    BERT.cut(cut, None, again)  # counts what is left
    final = silenced(masked, units, {layer: [kept[layer][i] for i in again[layer]] for layer in kept})
    assert (cut(texts) - final(texts)).abs().max() < 1e-12


def test_layers_that_lost_other_heads_train_one_position_bias_like_the_silenced_network():
    model, texts = network("mpnet"), padded()
    units = [unit for unit in BERT.units(model) if unit.head_dim > 1]
    kept = half(units)
    assert len({tuple(heads) for heads in kept.values()}) == len(units)
    cut, masked = copy.deepcopy(model), silenced(model, units, kept)
    BERT.cut(cut, None, kept)
    for each in (cut, masked):
        each(texts).square().sum().backward()
    encoders_ = (each.transformer.mpnet.encoder for each in (cut, masked))
    bias, expected = (encoder.relative_attention_bias.weight.grad for encoder in encoders_)
    assert (bias - expected).abs().max() < 1e-9 * expected.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_a_pruned_encoder_is_loaded_as_it_was_saved(kind, tmp_path):
    settings = {"num_classes": 3, "configuration": configuration(kind)}
    described, model, texts = Architecture("bert", "any", (3, 12), settings), network(kind).float(), padded()
    described = replace(described, kept=half(BERT.units(model)))
    described.cut(model)
    storage.write(tmp_path, model, described)
    assert torch.equal(storage.load(tmp_path)(texts), model(texts))


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_alone_loads_an_encoder_with_all_heads_and_one_width(kind, tmp_path):
    model, texts = network(kind).float(), padded()
    neurons = [unit for unit in BERT.units(model) if unit.head_dim == 1]
    BERT.cut(model, None, {unit.layer: range(unit.size)[::3] for unit in neurons})
    expected = model(texts)
    model.transformer.save_pretrained(tmp_path)
    model.transformer = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(model(texts), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(kind):
    model, texts = network(kind), padded()
    alone = torch.cat([model(row[None, :, :n]) for row, n in zip(texts, LENGTHS, strict=True)])
    assert (model(texts) - alone).abs().max() < 1e-12


def test_the_transformer_runs_by_itself_and_trains_and_frozen_parts_stay_frozen():
    model, texts = network(), padded()
    before = {name: value.shape for name, value in model.state_dict().items()}
    frozen = model.get_parameter("transformer.bert.encoder.layer.1.intermediate.dense.bias")
    frozen.requires_grad_(False)
    BERT.cut(model, None, half(BERT.units(model)))
    changed = {n for n, value in model.state_dict().items() if value.shape != before[n]}
    assert len(changed) == 3 * (2 * 3 + 1 + 2 + 1)  # residual width, embeddings and pooler stay
    ids, mask, types = texts.unbind(1)
    plain = model.transformer(input_ids=ids, attention_mask=mask, token_type_ids=types).logits
    assert torch.equal(plain, model(texts))
    model.train()(texts).sum().backward()
    encoder = model.transformer.bert.encoder
    untrained = [name for name, p in encoder.named_parameters() if p.grad is None or p.grad.shape != p.shape]
    assert untrained == ["layer.1.intermediate.dense.bias"]
    attention = encoder.layer[0].attention.self
    assert (attention.num_attention_heads, attention.all_head_size) == (3, 24)


@pytest.mark.parametrize("kind", KINDS)
def test_the_cost_without_building_is_the_cost_after_building(kind):
    model, inputs = network(kind), example_input((3, 16))
    units = BERT.units(model)
    cost = CostModel(layer_costs(model, inputs), units, sum(p.numel() for p in model.parameters()))
    kept = half(units)
    BERT.cut(model, None, kept)
    assert count(model, inputs) == cost([len(kept[unit.layer]) for unit in units])


def test_a_unit_is_scored_by_its_rows_and_columns():
    model = network()
    scores = [*criteria.score("magnitude", model, BERT.units(model)).values()]
    layer, head = model.transformer.bert.encoder.layer[1], slice(5 * 8, 6 * 8)
    rows = [getattr(layer.attention.self, part).weight[head] for part in ("query", "key", "value")]
    parts = [*rows, layer.attention.output.dense.weight[:, head]]
    assert scores[2][5].item() == pytest.approx(sum(part.abs().sum().item() for part in parts), rel=1e-12)
    parts = [layer.intermediate.dense.weight[7], layer.output.dense.weight[:, 7]]
    assert scores[3][7].item() == pytest.approx(sum(part.abs().sum().item() for part in parts), rel=1e-12)


def test_a_wrong_choice_leaves_the_network_whole():
    model = network()
    heads, neurons = (unit.layer for unit in BERT.units(model)[:2])
    with pytest.raises(UserError, match="has no heads or neurons to remove"):
        BERT.cut(model, None, {heads: [0], "transformer.bert.pooler.dense": [0]})
    with pytest.raises(UserError, match=r"kept units must be sorted, distinct, in 0\.\.39"):
        BERT.cut(model, None, {heads: [0], neurons: [3, 1]})
    assert model.get_submodule(heads).out_features == 48


def test_texts_in_another_vocabulary_are_refused():
    texts = [{"input_ids": torch.tensor(ids)} for ids in ([1, 89], [7, 7])]
    data = {part: SimpleNamespace(texts=texts) for part in ("train", "val", "test")}
    BERT.check(network(), SimpleNamespace(**data))
    texts[1]["input_ids"][0] = 90
    with pytest.raises(UserError, match=r"dataset\.tokenizer: .* 90"):
        BERT.check(network(), SimpleNamespace(**data))


def test_a_base_encoder_keeps_the_number_of_parameters_asked_for():
    settings = {"model_type": "bert", "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12,
                "num_attention_heads": 12, "intermediate_size": 3072,
                "max_position_embeddings": 512}  # fmt: skip
    architecture = Architecture("bert", "base", (3, 8), {"num_classes": 2, "configuration": settings})
    model = architecture.build().eval()
    options = candidates(model, example_input((3, 8)), architecture.units(model), adjust=0.1, floor=0.1)
    model.to("meta")  # weights take no memory from here on
    assert options.cost.dense.params == 109_483_778
    assert [(unit.size, unit.head_dim) for unit in options.units] == [(12, 64), (3072, 1)] * 12
    generator = torch.Generator().manual_seed(0)
    scores = [torch.rand(unit.size, generator=generator) for unit in options.units]
    for left in (67e6, 100e6):
        smaller = copy.deepcopy(model)
        BERT.cut(smaller, None, options.select(scores, Budget(target_params=left)))
        assert sum(p.numel() for p in smaller.parameters()) == pytest.approx(left, abs=300_000)
