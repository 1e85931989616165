"""Where the time goes: each node of ONNX Runtime's profile, layer by layer, original beside pruned.

A node belongs to the layer whose name its own begins with. What ONNX Runtime has fused into a convolution
(batch-norm, activation, the addition of a shortcut) has no time of its own: it is in the layer's. Nodes of no
layer are summed by their operator. Layers that differ in the number of their block alone are one line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from benchmarks import pairs
from benchmarks.pairs import Finish, Networks
from lpslim import padding
from lpslim.data.splits import example as blank_input
from lpslim.models import onnx
from lpslim.pruning.cost import layer_costs

ENDING = "_kernel_time"
BLOCKED = "_nchwc"  # ends the name of a node that ONNX Runtime gave its blocked layout
ACTIVATIONS = ("Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid")  # what it fuses, named so after
WARM = 2  # calls


@dataclass(frozen=True)
class Node:
    """One node of a profile: its layer, or its operator if it is in none; whether its layout is blocked."""

    name: str
    is_layer: bool
    ms: float
    blocked: bool


@dataclass(frozen=True)
class Line:
    """Layers, or nodes of one operator: how many, multiply-adds of one input, ms, how many blocked."""

    name: str
    is_layer: bool
    count: int
    macs: int
    ms: float
    blocked: int


def profiled(
    networks: Networks, batch: int, calls: int, threads: int, finish: Finish = padding.pad
) -> tuple[list[Line], list[Line]]:
    """Return the lines of the original and of the pruned network, whose calls take turns.

    finish: see :func:`lpslim.models.onnx.write`.

    Raises:
        UserError: ONNX Runtime's packages are not installed.
    """
    images = pairs.inputs(networks.shape, batch)
    example = blank_input(networks.shape)
    models = networks.dense, networks.pruned
    with TemporaryDirectory() as folder:
        files = [Path(folder) / f"{name}.onnx" for name in ("dense", "pruned")]
        for model, file in zip(models, files, strict=True):
            export.write(model, example, file, finish)
        sessions = [export.session(file, threads, profile=file.with_suffix("")) for file in files]
        for _ in range(WARM + calls):
            for session in sessions:
                export.logits(session, images)
        events = [json.loads(Path(session.end_profiling()).read_text()) for session in sessions]
        found = [
            lines(nodes(each, producers(file), layer_names(model)), macs(model, networks.shape))
            for each, file, model in zip(events, files, models, strict=True)
        ]
    return found[0], found[1]


def layer_names(model: nn.Module) -> set[str]:
    """Return the names of the convolutions and linear layers."""
    return {name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}


def macs(model: nn.Module, shape: tuple[int, ...]) -> dict[str, int]:
    """Return the multiply-adds of each layer for one input."""
    return {
        each.name: each.cost(each.fan_in, each.out).macs for each in layer_costs(model, blank_input(shape))
    }


def producers(file: Path) -> dict[str, Any]:
    """Return, for each tensor of an ONNX file, the node that makes it."""
    import onnx

    return {name: node for node in onnx.load(file).graph.node for name in node.output}


def nodes(events: Iterable[Mapping[str, Any]], made_by: Mapping[str, Any], layers: set[str]) -> list[Node]:
    """Return the nodes of a profile in the order of their first calls, each with its median time.

    events: of the profiler. made_by: see :func:`producers`. layers: names in the network.
    """
    times: dict[tuple[str, str], list[float]] = {}
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith(ENDING):
            key = event["name"].removesuffix(ENDING), event["args"]["op_name"]
            times.setdefault(key, []).append(event["dur"] / 1e3)
    found = []
    for (name, operator), taken in times.items():
        layer = module_of(original(name, made_by))
        is_layer = layer in layers
        found.append(
            Node(layer if is_layer else operator, is_layer, median(taken[WARM:]), name.endswith(BLOCKED))
        )
    return found


def original(name: str, made_by: Mapping[str, Any]) -> str:
    """Return the name that a node had in the file, before ONNX Runtime fused it or changed its layout."""
    if not name.endswith(BLOCKED):
        return name.removeprefix("fused ")
    node = made_by[
        name.removesuffix(BLOCKED)
    ]  # it is called after its output: the activation's, if that is fused
    while node.op_type in ACTIVATIONS:
        node = made_by[node.input[0]]
    return node.name


def module_of(name: str) -> str:
    """Return the module that a node of torch's exporter comes from: ``/a/a.0/b/Conv`` is ``a.0.b``."""
    parts: list[str] = []
    for part in name.strip("/").split("/")[:-1]:
        if parts and part.startswith(f"{parts[-1]}."):  # a sequence's entry repeats its name
            parts.pop()
        parts.append(part)
    return ".".join(parts)


def lines(found: Sequence[Node], macs: Mapping[str, int]) -> list[Line]:
    """Return nodes summed by kind of layer or operator, layers first. macs: of each layer, for one input."""
    sums: dict[str, Line] = {}
    seen: set[str] = set()
    for node in sorted(found, key=lambda node: not node.is_layer):
        name = kind(node.name) if node.is_layer else node.name
        old = sums.get(name, Line(name, node.is_layer, 0, 0, 0.0, 0))
        is_new = node.name not in seen  # a layer may be several nodes: the product, the bias
        seen.add(node.name)
        sums[name] = replace(
            old,
            count=old.count + (is_new or not node.is_layer),
            macs=old.macs + (macs.get(node.name, 0) if is_new else 0),
            ms=old.ms + node.ms,
            blocked=old.blocked + (node.blocked and node.is_layer),
        )
    return list(sums.values())


def kind(layer: str) -> str:
    """Return a layer's name without the number of its block: ``layer1.3.conv1`` is ``layer1.*.conv1``."""
    return re.sub(r"\.\d+(?=\.)", ".*", layer)
