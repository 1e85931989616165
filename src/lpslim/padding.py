"""Zero channels in an ONNX file, for widths that ONNX Runtime likes: the outputs stay what they are.

On a CPU ONNX Runtime has a fast layout for convolutions, channels in blocks as wide as the processor's
vectors, but only for those that read a multiple of 4 channels, or fewer than a block. Without it one that
reads 153 channels takes longer than one that reads 256. So channels that nothing but convolutions read,
through activations and poolings, are filled up: the filters that make the new ones are zero, and so are the
weights that read them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

MULTIPLE = 4
FEW = 16  # the widest block; convolutions that read fewer channels need no blocks of them
CHANNELWISE = ("Relu", "Clip", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool")


def pad(path: Path) -> int:
    """Fill up the channels of the file's convolutions in place; return how many were added.

    Convolutions in groups stay as they are, and channels that anything else reads: an addition, a linear
    layer, the caller.
    """
    import onnx

    model = onnx.load(path)
    network = _Network(model.graph)
    added = sum(network.fill(node) for node in model.graph.node)
    if added:
        del model.graph.value_info[:]  # the widths between the nodes
        onnx.save(model, path)
    return added


class _Network:
    """A graph of ONNX: who reads a tensor, and the weights."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self.weights = {each.name: each for each in graph.initializer}
        self.outputs = {each.name for each in graph.output}
        self.readers: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.own = {name for name in self.weights if len(self.readers.get(name, [])) == 1}
        for node in graph.node:  # the exporter writes equal biases once, and names for the others
            if node.op_type == "Identity" and node.input[0] in self.weights:
                self.weights[node.output[0]] = self.weights[node.input[0]]

    def fill(self, node: Any) -> int:
        """Add zero channels to what a node puts out if that is possible, and needed; return how many."""
        if not self._plain(node):
            return 0
        width = self.weights[node.input[1]].dims[0]
        readers = self._convolutions(node.output[0])
        missing = -width % MULTIPLE if width > FEW else 0
        if not missing or not readers:
            return 0
        for place in range(1, len(node.input)):  # the filters, and the bias
            self._grow(node, place, missing, axis=0)
        for reader in readers:
            self._grow(reader, 1, missing, axis=1)
        return missing

    def _plain(self, node: Any) -> bool:
        """Return whether a node is a convolution without groups whose weights are known."""
        groups = [each.i for each in node.attribute if each.name == "group"]
        known = all(name in self.weights for name in node.input[1:])
        return node.op_type == "Conv" and groups in ([], [1]) and known

    def _convolutions(self, tensor: str) -> list[Any]:
        """Return the convolutions that read a tensor's channels; none if anything else does."""
        found = []
        for node in self.readers.get(tensor, []):
            further = node.op_type in CHANNELWISE and self._convolutions(node.output[0])
            if self._plain(node):
                found.append(node)
            elif further:
                found += further
            else:
                return []
        return [] if tensor in self.outputs else found

    def _grow(self, node: Any, place: int, by: int, axis: int) -> None:
        """Append zeros to one of a node's weights; others that have it in common keep the old one."""
        from onnx import numpy_helper

        name = node.input[place]
        old = numpy_helper.to_array(self.weights[name])
        grown = np.pad(old, [(0, by if i == axis else 0) for i in range(old.ndim)])
        if name not in self.own:
            name = node.input[place] = f"{node.name}.{place}"
            self.own.add(name)
            self.weights[name] = self.graph.initializer.add()
        self.weights[name].CopyFrom(numpy_helper.from_array(grown, name))
