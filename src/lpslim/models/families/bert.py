"""BERT, RoBERTa and ELECTRA with a classification head; prunable units are attention heads and neurons.

A unit of attention is one head: ``head_dim`` rows of query, key and value, and as many columns of the output
projection. A unit of the feed-forward part is one neuron: a row of the first matrix, a column of the
second. Embeddings, pooler and the residual stream keep their width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lpslim.base.errors import UserError
from lpslim.models import encoders
from lpslim.models.family import Family
from lpslim.pruning.units import Prunable, Units


class Classifier(nn.Module):
    """A transformers classifier, ``transformer``, on packed tokens (B, 3, L): ids, attention mask, types."""

    transformer: Any

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, packed: Tensor) -> Tensor:
        """Return logits (B, classes)."""
        ids, mask, types = packed.unbind(1)
        if self.transformer.config.type_vocab_size < 2:  # RoBERTa has one type of token
            types = torch.zeros_like(types)
        logits: Tensor = self.transformer(input_ids=ids, attention_mask=mask, token_type_ids=types).logits
        return logits


class BertFamily(Family):
    """Encoders that :mod:`lpslim.models.encoders` knows by name."""

    input = "text"

    def build(self, name: str, *, num_classes: int, configuration: Mapping[str, Any]) -> nn.Module:
        """Build the network that a configuration describes, with random weights.

        Raises:
            UserError: it describes none of this family; see :func:`lpslim.models.encoders.check`.
        """
        return Classifier(encoders.classifier(configuration, num_classes))

    def arguments(self, name: str, shape: Sequence[int]) -> dict[str, Any]:
        """Return the encoder's configuration.

        Raises:
            UserError: see :func:`lpslim.models.encoders.configuration`.
        """
        return {"configuration": encoders.configuration(name)}

    def units(self, model: nn.Module, example: Tensor | None = None) -> list[Units]:
        """Return the heads and the neurons of every layer; nothing is traced."""
        units = []
        for name, layer in _layers(model):
            attention = f"{name}.attention.self"
            projections = tuple(f"{attention}.{part}" for part in ("query", "key", "value"))
            output = f"{name}.attention.output.dense"
            heads, head_dim = (
                layer.attention.self.num_attention_heads,
                layer.attention.self.attention_head_size,
            )
            scored_by = (*((projection, 0) for projection in projections), (output, 1))
            units.append(
                Units(
                    projections[0],
                    heads,
                    False,
                    projections,
                    (output,),
                    head_dim=head_dim,
                    scored_by=scored_by,
                )
            )
            first, second = f"{name}.intermediate.dense", f"{name}.output.dense"
            neurons = layer.intermediate.dense.out_features
            scored_by = ((first, 0), (second, 1))
            units.append(Units(first, neurons, False, (first,), (second,), scored_by=scored_by))
        return units

    def prunable(self, model: nn.Module) -> list[Prunable]:
        """Return the first layer of every unit: query projections and first matrices."""
        return [Prunable(units.layer) for units in self.units(model)]

    def cut(self, model: nn.Module, example: Tensor | None, kept: Mapping[str, Sequence[int]]) -> None:
        """Remove, in place, the units that are not in ``kept`` (layer name -> original indices).

        Raises:
            UserError: a name is none of the units', or indices are not a sorted, non-empty choice.
        """
        by_layer = {units.layer: units for units in self.units(model)}
        for layer, chosen in kept.items():
            if layer not in by_layer:
                raise UserError(f"layer {layer!r}: has no heads or neurons to remove")
            by_layer[layer].check(chosen)
        for layer, chosen in kept.items():
            units = by_layer[layer]
            index = torch.tensor(
                [unit * units.head_dim + i for unit in chosen for i in range(units.head_dim)]
            )
            for name in units.producers:
                _slice(model.get_submodule(name), index, axis=0)
            for name in units.consumers:
                _slice(model.get_submodule(name), index, axis=1)
            attention: Any = model.get_submodule(layer.rpartition(".")[0])
            if layer.endswith(".query"):
                attention.num_attention_heads = len(chosen)
                attention.all_head_size = len(index)

    def weights_identity(self, name: str, weights: str) -> str:
        """Return the SHA-256 of a local file of weights, or the hub's revision."""
        return encoders.identity(weights)

    def load_weights(self, model: Any, name: str, weights: str) -> None:
        """Copy a pretrained encoder's weights into a network; the head gets random ones.

        Raises:
            UserError: they cannot be found, or are of another network.
        """
        loaded = encoders.encoder(weights, model.transformer.config)
        model.transformer.load_state_dict(loaded.state_dict())

    def check(self, model: Any, data: Any) -> None:
        """Refuse texts in the tokens of another vocabulary.

        Raises:
            UserError: a token's number is beyond the network's vocabulary.
        """
        size = model.transformer.config.vocab_size
        last = max(int(split.ids.max()) for split in (data.train, data.val, data.test))
        if last >= size:
            raise UserError(
                f"dataset.tokenizer: has a token {last}, but the network's vocabulary has {size}: "
                "it belongs to another network"
            )

    def save_tokenizer(self, folder: Path, tokenizer: str) -> None:
        """Write the tokenizer beside a saved network: ``AutoTokenizer.from_pretrained(folder)`` reads it.

        Raises:
            UserError: it cannot be found.
        """
        encoders.tokenizer(tokenizer).save_pretrained(folder)


def _layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if {"attention", "intermediate", "output"} <= dict(module.named_children()).keys():
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


family = BertFamily()
