"""BERT, RoBERTa and ELECTRA with a classification head; prunable units are attention heads and neurons.

A head is ``head_dim`` rows of query, key and value, and as many columns of the output projection; a neuron is
a row of the first feed-forward matrix and a column of the second. All else keeps its width.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lpslim.base.errors import UserError
from lpslim.models import encoders
from lpslim.models.family import Family
from lpslim.pruning.units import Units


class Classifier(nn.Module):
    """A transformers classifier, ``transformer``, on packed tokens (B, 3, L): ids, attention mask, types."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, packed: Tensor) -> Tensor:
        """Return logits (B, classes)."""
        ids, mask, types = packed.unbind(1)
        if self.transformer.config.type_vocab_size < 2:  # RoBERTa has one type of token
            types = torch.zeros_like(types)
        return self.transformer(input_ids=ids, attention_mask=mask, token_type_ids=types).logits


class BertFamily(Family):
    """Encoders that :mod:`lpslim.models.encoders` knows by name."""

    def build(self, name: str, *, num_classes: int, configuration: Mapping[str, Any]) -> nn.Module:
        """Return a network with random weights; UserError as :func:`encoders.classifier`."""
        return Classifier(encoders.classifier(configuration, num_classes))

    def arguments(self, name: str, shape: Sequence[int]) -> dict[str, Any]:
        """Return the encoder's configuration; UserError if it cannot be found."""
        return {"configuration": encoders.configuration(name)}

    def units(self, model: nn.Module, example: Tensor | None = None) -> list[Units]:
        """Return the heads and the neurons of every layer; nothing is traced."""
        units = []
        for name, layer in model.named_modules():
            if not {"attention", "intermediate", "output"} <= {part for part, _ in layer.named_children()}:
                continue
            attention: Any = layer.get_submodule("attention.self")
            rows = tuple(f"{name}.attention.self.{part}" for part in ("query", "key", "value"))
            columns, head_dim = f"{name}.attention.output.dense", attention.attention_head_size
            scored_by, heads = (*((row, 0) for row in rows), (columns, 1)), attention.num_attention_heads
            units.append(Units(rows[0], heads, False, rows, (columns,), 1, head_dim, scored_by))
            first, second = f"{name}.intermediate.dense", f"{name}.output.dense"
            scored_by, neurons = ((first, 0), (second, 1)), len(model.get_parameter(f"{first}.weight"))
            units.append(Units(first, neurons, False, (first,), (second,), scored_by=scored_by))
        return units

    def cut(self, model: nn.Module, example: Tensor | None, kept: Mapping[str, Sequence[int]]) -> None:
        """Remove, in place, the units not in ``kept``; UserError, and nothing is removed, if it is bad."""
        by_layer = {units.layer: units for units in self.units(model)}
        for layer, chosen in kept.items():
            if layer not in by_layer:
                raise UserError(f"layer {layer!r}: has no heads or neurons to remove")
            by_layer[layer].check(chosen)
        device = next(model.parameters()).device
        for layer, chosen in kept.items():
            units = by_layer[layer]
            first = torch.tensor(list(chosen), device=device)[:, None] * units.head_dim
            index = (first + torch.arange(units.head_dim, device=device)).flatten()
            for name in units.producers:
                _slice(model.get_submodule(name), index, axis=0)
            for name in units.consumers:
                _slice(model.get_submodule(name), index, axis=1)
            if layer.endswith(".query"):
                attention: Any = model.get_submodule(layer.removesuffix(".query"))
                attention.num_attention_heads, attention.all_head_size = len(chosen), len(index)

    def weights_identity(self, name: str, weights: str) -> str:
        """Return the SHA-256 of a local file, or the hub's revision; UserError if there is neither."""
        return encoders.identity(weights)

    def load_weights(self, model: Any, name: str, weights: str, folder: str | None = None) -> None:
        """Copy an encoder's weights into a network, with a new random head; UserError if they do not fit."""
        loaded = encoders.encoder(weights, model.transformer.config)
        model.transformer.load_state_dict(loaded.state_dict())

    def check(self, model: Any, data: Any) -> None:
        """Raise UserError for texts in the tokens of another vocabulary."""
        size = model.transformer.config.vocab_size
        last = max(int(split.ids.max()) for split in (data.train, data.val, data.test) if len(split.ids))
        if last >= size:
            raise UserError(f"dataset.tokenizer: has a token {last}; the network's vocabulary has {size}")

    def save_tokenizer(self, folder: Path, tokenizer: str) -> None:
        """Write the tokenizer beside a saved network: ``AutoTokenizer.from_pretrained(folder)`` reads it."""
        encoders.tokenizer(tokenizer).save_pretrained(folder)


def _slice(linear: Any, index: Tensor, axis: int) -> None:
    """Keep rows (axis 0: outputs) or columns (axis 1: inputs) of a linear layer; frozen ones stay frozen."""
    linear.weight.data = linear.weight.data.index_select(axis, index)
    if axis == 0 and linear.bias is not None:
        linear.bias.data = linear.bias.data[index]
    linear.out_features, linear.in_features = linear.weight.shape


family = BertFamily()
