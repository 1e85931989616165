"""BERT and its kin with a head for sentences, and their prunable units: attention heads and neurons.

A unit of attention is one head: ``span`` rows of query, key and value, and as many columns of the output
projection. A unit of the feed-forward part is one neuron: a row of the first matrix, a column of the
second. Embeddings, pooler and the residual stream keep their width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from lpslim.base.errors import UserError
from lpslim.models import encoders
from lpslim.pruning.units import Units

NAMES = None  # any that lpslim.models.encoders knows
configuration = pretrained.configuration
identity = pretrained.identity


class Classifier(nn.Module):
    """A classifier of transformers, ``transformer``, that takes packed tokens (B, 3, L); see lpslim.data.tokens."""

    transformer: Any

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, packed: Tensor) -> Tensor:
        """Return logits (B, classes)."""
        ids, mask, types = packed.unbind(1)
        if self.transformer.config.type_vocab_size < 2:  # RoBERTa has one type of token
            types = torch.zeros_like(types)
        found: Tensor = self.transformer(input_ids=ids, attention_mask=mask, token_type_ids=types).logits
        return found


def build(name: str, *, num_classes: int, configuration: Mapping[str, Any]) -> nn.Module:
    """Build the network that a configuration describes, with random weights.

    Raises:
        UserError: it describes none of this family; see :func:`lpslim.models.encoders.check`.
    """
    pretrained.check(configuration)
    config = AutoConfig.for_model(**configuration, num_labels=num_classes)
    blank: Any = AutoModelForSequenceClassification
    return Classifier(blank.from_config(config, trust_remote_code=False))


def initialise(model: Any, weights: str) -> None:
    """Give a network the weights of a pretrained encoder, in place; the head gets random ones.

    Raises:
        UserError: they cannot be found, or are of another network.
    """
    model.transformer.load_state_dict(pretrained.encoder(weights, model.transformer.config).state_dict())


def check(model: Any, data: Any) -> None:
    """Refuse texts in the tokens of another vocabulary.

    Raises:
        UserError: a token's number is beyond the network's vocabulary.
    """
    size = model.transformer.config.vocab_size
    last = max(int(split.ids.max()) for split in (data.train, data.val, data.test))
    if last >= size:
        raise UserError(
            f"dataset.tokenizer: has a token {last}, but the network's vocabulary has {size}: it is another's"
        )


def accompany(folder: Path, name: str) -> None:
    """Put the tokenizer beside a saved network: ``AutoTokenizer.from_pretrained(folder)`` reads it.

    Raises:
        UserError: it cannot be found.
    """
    pretrained.tokenizer(name).save_pretrained(folder)


def find_units(model: nn.Module) -> list[Units]:
    """Return the heads and the neurons of every layer."""
    found = []
    for name, layer in _layers(model):
        attention, query = layer.attention.self, f"{name}.attention.self"
        size, span = attention.num_attention_heads, attention.attention_head_size
        projections = tuple(f"{query}.{part}" for part in ("query", "key", "value"))
        output = f"{name}.attention.output.dense"
        heads = (*((each, 0) for each in projections), (output, 1))
        found.append(Units(projections[0], size, False, projections, (output,), span=span, weighed=heads))
        first, second = f"{name}.intermediate.dense", f"{name}.output.dense"
        size, neurons = layer.intermediate.dense.out_features, ((first, 0), (second, 1))
        found.append(Units(first, size, False, (first,), (second,), weighed=neurons))
    return found


def prune(model: nn.Module, kept: Mapping[str, Sequence[int]]) -> None:
    """Remove, in place, the units that are not in ``kept`` (layer name -> original indices).

    Raises:
        UserError: a name is none of the units', or indices are not a sorted, non-empty choice.
    """
    units = {each.layer: each for each in find_units(model)}
    for layer, chosen in kept.items():
        if layer not in units:
            raise UserError(f"layer {layer!r}: has no heads or neurons to remove")
        units[layer].check(chosen)
    for layer, chosen in kept.items():
        each = units[layer]
        index = torch.tensor([unit * each.span + i for unit in chosen for i in range(each.span)])
        for name in each.producers:
            _slice(model.get_submodule(name), index, axis=0)
        for name in each.consumers:
            _slice(model.get_submodule(name), index, axis=1)
        attention: Any = model.get_submodule(layer.rpartition(".")[0])
        if hasattr(attention, "num_attention_heads"):
            attention.num_attention_heads = len(chosen)
            attention.all_head_size = len(index)


def _layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if all(hasattr(module, part) for part in ("attention", "intermediate", "output")):
            yield name, module


def _slice(linear: Any, index: Tensor, axis: int) -> None:
    """Keep rows (axis 0: outputs) or columns (axis 1: inputs) of a linear layer, in place."""
    index = index.to(linear.weight.device)
    linear.weight = _parameter(linear.weight, index, axis)
    if axis == 0 and linear.bias is not None:
        linear.bias = _parameter(linear.bias, index, 0)
    linear.out_features, linear.in_features = linear.weight.shape


def _parameter(old: Tensor, index: Tensor, axis: int) -> nn.Parameter:
    return nn.Parameter(old.detach().index_select(axis, index), requires_grad=old.requires_grad)
