"""One counting rule: multiply-adds of convolution and linear layers, and all parameters.

Batch-norm, activations, pooling, biases and additions count nothing in the multiply-adds ("FLOPs" in the
tables). Every parameter of the network counts in the parameters.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lpslim.base.errors import UserError
from lpslim.pruning.feature_maps import watched
from lpslim.pruning.units import Units

# Layers whose parameters go with the channels
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.GroupNorm)
COUNTED = (nn.Conv2d, nn.Linear, *NORMS, nn.PReLU)


@dataclass(frozen=True)
class Cost:
    """Multiply-adds for one input, and parameters."""

    macs: int
    params: int


@dataclass(frozen=True)
class LayerCost:
    """The factors of one layer's cost: macs = positions * kernel * fan_in * out."""

    name: str
    positions: int
    kernel: int  # its area
    fan_in: int  # input channels that one filter reads: 1 if depthwise
    out: int
    vectors: int  # parameters per output channel besides the filter: bias, batch-norm scale and shift

    def cost(self, fan_in: int, out: int) -> Cost:
        """Return the cost with other widths."""
        filters = self.kernel * fan_in * out
        return Cost(self.positions * filters, filters + self.vectors * out)


@torch.no_grad()
def layer_costs(model: nn.Module, example: Tensor) -> list[LayerCost]:
    """Return every convolution, linear layer and norm, measured on one forward pass of an example.

    A layer that is called several times is one entry, at the positions of all calls together. UserError if a
    convolution or linear layer is not called as such, so that its cost is unknown.
    """
    modules = {name: module for name, module in model.named_modules() if isinstance(module, COUNTED)}
    costs: dict[str, LayerCost] = {}

    def record(name: str, out: Tensor) -> None:
        layer, before = _describe(name, modules[name], out), costs.get(name)
        costs[name] = replace(layer, positions=layer.positions + before.positions) if before else layer

    with watched(model, modules, record):
        model(example)
    for name, module in modules.items():
        if isinstance(module, nn.Conv2d | nn.Linear) and name not in costs:
            raise UserError(f"layer {name!r}: is not called by itself: its multiply-adds cannot be counted")
    return list(costs.values())


def _describe(name: str, module: nn.Module, out: Tensor) -> LayerCost:
    if isinstance(module, nn.Conv2d | nn.Linear):
        channels, fan_in, *kernel = module.weight.shape
        positions = out[0, 0].numel() if kernel else out[0, ..., 0].numel()
        biases = int(module.bias is not None)
        return LayerCost(name, positions, math.prod(kernel), fan_in, channels, biases)
    shared = isinstance(module, nn.PReLU) and module.num_parameters == 1  # one slope for all channels
    vectors = [] if shared else list(module.parameters(recurse=False))
    return LayerCost(name, 0, 0, 0, vectors[0].numel() if vectors else 0, len(vectors))


def parameters(model: nn.Module) -> int:
    """Return the number of all parameters of a network."""
    return sum(parameter.numel() for parameter in model.parameters())


def count(model: nn.Module, example: Tensor) -> Cost:
    """Return the cost of a network as it stands. example: one input of the network."""
    return CostModel(layer_costs(model, example), [], parameters(model)).dense


class CostModel:
    """Cost of a network with fewer units, without building it.

    layers: of :func:`layer_costs` on the dense network. units: the prunable layers, with the layers that each
    shrinks. params: all parameters of the dense network.
    """

    def __init__(self, layers: Sequence[LayerCost], units: Sequence[Units], params: int) -> None:
        self.layers, self.units = list(layers), list(units)
        self.producer = {name: i for i, unit in enumerate(units) for name in unit.producers}
        self.consumer = {name: i for i, unit in enumerate(units) for name in unit.consumers}
        counted = [layer.cost(layer.fan_in, layer.out) for layer in self.layers]
        self.dense = Cost(sum(cost.macs for cost in counted), params)
        self.uncounted = params - sum(cost.params for cost in counted)

    def __call__(self, widths: Sequence[int]) -> Cost:
        """Return the cost with ``widths[i]`` units in layer i."""
        macs, params = 0, self.uncounted
        for layer in self.layers:
            fan_in = self._channels(layer.fan_in, self.consumer.get(layer.name), widths)
            out = self._channels(layer.out, self.producer.get(layer.name), widths)
            cost = layer.cost(fan_in, out)
            macs, params = macs + cost.macs, params + cost.params
        return Cost(macs, params)

    def _channels(self, dense: int, unit: int | None, widths: Sequence[int]) -> int:
        # a flattened feature map feeds several inputs of a linear layer per channel
        return dense if unit is None else dense // self.units[unit].size * widths[unit]

    def flops_drop(self, widths: Sequence[int]) -> float:
        """Return the share of the dense multiply-adds that is gone with ``widths[i]`` units in layer i."""
        return 1 - self(widths).macs / self.dense.macs

    def params_drop(self, widths: Sequence[int]) -> float:
        """Return the share of the dense parameters that is gone with ``widths[i]`` units in layer i."""
        return 1 - self(widths).params / self.dense.params
