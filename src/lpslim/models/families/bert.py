"""BERT and encoders of its kind with a classification head; prunable units are attention heads and neurons.

A head is ``head_dim`` rows of query, key and value, and as many columns of the output projection; a neuron is
a row of the first feed-forward matrix and a column of the second. All else keeps its width. MPNet's layers
share a position bias with a column per head: a pruned layer reads the columns of the heads that it has kept.
"""

from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lpslim.base.errors import UserError
from lpslim.models import encoders
from lpslim.models.family import Family
from lpslim.models.weights import Published, load_into
from lpslim.pruning.dependency import apply
from lpslim.pruning.units import Cut, Units


class Classifier(nn.Module):
    """A transformers classifier, ``transformer``, on packed tokens (B, 3, L): ids, attention mask, types."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, packed: Tensor) -> Tensor:
        """Return logits (B, classes)."""
        ids, mask, types = packed.unbind(1)
        kinds = getattr(self.transformer.config, "type_vocab_size", 0)  # of RoBERTa 1, of MPNet none
        more = {"token_type_ids": types} if kinds > 1 else {}
        return self.transformer(input_ids=ids, attention_mask=mask, **more).logits


class BertFamily(Family):
    """Encoders that :mod:`lpslim.models.encoders` knows by name."""

    def build(self, name: str, *, num_classes: int, configuration: Mapping[str, Any]) -> nn.Module:
        """Return a network with random weights; UserError as :func:`encoders.classifier`."""
        return Classifier(encoders.classifier(configuration, num_classes))

    def arguments(self, name: str, shape: Sequence[int]) -> dict[str, Any]:
        """Return the encoder's configuration; UserError if it cannot be found, or reads no text so long."""
        if shape[-1] > (most := encoders.positions(name)):
            raise UserError(
                f"dataset.max_length={shape[-1]}: must be at most {most}, as model.name={name} reads"
            )
        return {"configuration": encoders.configuration(name)}

    def units(self, model: Any, example: Tensor | None = None) -> list[Units]:
        """Return the heads and the neurons of every layer; nothing is traced."""
        units = []
        names, parts = dict(model.named_modules()), encoders.LAYERS[model.transformer.config.model_type]
        for layer in [name.removesuffix(parts[0]) for name in names if name.endswith(f".{parts[0]}")]:
            *rows, columns, first, second = (layer + part for part in parts)
            attention = model.get_submodule(rows[0].rpartition(".")[0])
            units.append(_units(model, rows, columns, attention.attention_head_size))
            units.append(_units(model, [first], second, 1))
        return units

    def cut(self, model: Any, example: Tensor | None, kept: Mapping[str, Sequence[int]]) -> None:
        """Remove, in place, the units not in ``kept``; UserError, and nothing is removed, if it is bad."""
        by_layer = {units.layer: units for units in self.units(model)}
        for layer, chosen in kept.items():
            if layer not in by_layer:
                raise UserError(f"layer {layer!r}: has no heads or neurons to remove")
            by_layer[layer].check(chosen)
        gone = {layer: sorted({*range(by_layer[layer].size)} - {*chosen}) for layer, chosen in kept.items()}
        apply(model, [cut for layer in kept for cut in by_layer[layer].without(gone[layer])])
        for layer, chosen in kept.items():
            attention = model.get_submodule(layer.rpartition(".")[0])
            if hasattr(attention, "attention_head_size"):
                _keep_heads(attention, chosen)
        widths = {units.size for units in self.units(model) if len(units.producers) == 1}
        if len(widths) == 1:  # a width that transformers' configuration can express
            config = model.transformer.config
            setattr(config, "hidden_dim" if hasattr(config, "hidden_dim") else "intermediate_size", *widths)

    def published(self, name: str) -> Mapping[str, Published]:
        """Return nothing to download: the name stands for the weights; UserError if it is no encoder's."""
        encoders.configuration(name)
        return {}

    def weights_identity(self, name: str, weights: str) -> str:
        """Return the SHA-256 of a local file, or the hub's revision; UserError if there is neither."""
        return encoders.identity(weights)

    def load_weights(self, model: Any, name: str, weights: str, folder: str | None = None) -> None:
        """Copy an encoder's weights into a network, with a new random head; UserError if they do not fit."""
        loaded = encoders.encoder(weights, model.transformer.config)
        load_into(model.transformer, loaded.state_dict(), weights)

    def check(self, model: Any, data: Any) -> None:
        """Raise UserError for texts in the tokens of another vocabulary."""
        size = model.transformer.config.vocab_size
        texts = [text for split in (data.train, data.val, data.test) for text in split.texts]
        last = max(int(text["input_ids"].max()) for text in texts)
        if last >= size:
            raise UserError(f"dataset.tokenizer: has a token {last}; the network's vocabulary has {size}")

    def save_tokenizer(self, folder: Path, tokenizer: str) -> None:
        """Write the tokenizer beside a saved network: ``AutoTokenizer.from_pretrained(folder)`` reads it."""
        encoders.tokenizer(tokenizer).save_pretrained(folder)


def _keep_heads(attention: Any, chosen: Sequence[int]) -> None:
    """Tell an attention, by the names of every kind of encoder, which of its heads are left."""
    if "position_bias" in signature(attention.forward).parameters:
        if not hasattr(attention, "heads"):
            attention.heads = range(attention.num_attention_heads)
            attention.register_forward_pre_hook(_own_columns)
        attention.heads = [attention.heads[head] for head in chosen]
    attention.num_attention_heads = attention.n_heads = len(chosen)
    attention.all_head_size = len(chosen) * attention.attention_head_size


def _own_columns(attention: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Leave of the shared position bias (B, heads, L, L), the last input, what is of an attention's heads."""
    *others, bias = inputs
    return *others, bias[:, attention.heads]


def _units(model: nn.Module, rows: Sequence[str], columns: str, head_dim: int) -> Units:
    """Return the units that are rows of some linear layers and columns of another."""
    size = len(model.get_parameter(f"{rows[0]}.weight"))
    cuts = (*(Cut(row, False, list(range(size))) for row in rows), Cut(columns, True, list(range(size))))
    scored_by = (*((row, 0) for row in rows), (columns, 1))
    parts = rows[0], size // head_dim, False, tuple(rows), (columns,), 1, head_dim, scored_by
    return Units(*parts, cuts=cuts)


family = BertFamily()
