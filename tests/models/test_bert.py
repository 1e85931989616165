"""Heads and neurons: removing them is exact, costs what was foreseen, and leaves the rest alone."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import BertConfig, ElectraConfig, RobertaConfig

from lpslim.base.errors import UserError
from lpslim.base.modules import example_input
from lpslim.models import encoders
from lpslim.models import family as families
from lpslim.models.storage import Architecture
from lpslim.pruning import criteria
from lpslim.pruning.budget import Budget, candidates
from lpslim.pruning.cost import CostModel, count, layer_costs

BERT = families.get("bert")
LENGTHS = (12, 7, 3, 9)
KINDS = {"bert": BertConfig, "roberta": RobertaConfig, "electra": ElectraConfig}
SPECIAL = {"roberta": {"type_vocab_size": 1, "pad_token_id": 1}, "electra": {"embedding_size": 24}}


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
@pytest.mark.parametrize("part", ["attention", "intermediate", ""])
def test_a_pruned_network_equals_the_silenced_one_with_padding_in_the_batch(kind, part):
    model, texts = network(kind), padded()
    units = [unit for unit in BERT.units(model) if part in unit.layer]
    kept = half(units)
    expected = silenced(model, units, kept)(texts)
    cut = copy.deepcopy(model)
    BERT.cut(cut, None, kept)
    assert (cut(texts) - expected).abs().max() < 1e-12
    assert (cut(texts) - model(texts)).abs().max() > 1e-3


def test_padding_changes_nothing():
    model, texts = network(), padded()
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
    scores = criteria.score("magnitude", model, BERT.units(model))
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
    data = {part: SimpleNamespace(ids=torch.tensor([1, 89])) for part in ("train", "val", "test")}
    BERT.check(network(), SimpleNamespace(**data))
    data["val"].ids[0] = 90
    with pytest.raises(UserError, match=r"dataset\.tokenizer: .* 90"):
        BERT.check(network(), SimpleNamespace(**data))


def test_bert_base_keeps_the_number_of_parameters_asked_for():
    settings = {"model_type": "bert", "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12}
    settings |= {"num_attention_heads": 12, "intermediate_size": 3072, "max_position_embeddings": 512}
    architecture = Architecture("bert", "base", (3, 8), {"num_classes": 2, "configuration": settings})
    model = architecture.build().eval()
    options = candidates(model, example_input((3, 8)), architecture.units(model), adjust=0.1, floor=0.1)
    model.to("meta")  # weights take no memory from here on
    assert options.cost.dense.params == 109_483_778
    assert [(unit.size, unit.head_dim) for unit in options.units] == [(12, 64), (3072, 1)] * 12
    generator = torch.Generator().manual_seed(0)
    scores = [torch.rand(unit.size, generator=generator) for unit in options.units]
    for left in (60e6, 100e6):
        smaller = copy.deepcopy(model)
        BERT.cut(smaller, None, options.select(scores, Budget(target_params=left)))
        assert sum(p.numel() for p in smaller.parameters()) == pytest.approx(left, abs=300_000)
