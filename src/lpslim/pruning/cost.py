"""One counting rule: multiply-adds of convolution and linear layers, and all parameters.

Multiply-adds ("FLOPs" in the tables) are those that torch's FlopCounterMode counts in convolutions and in
products with a matrix of weights, over all positions. Batch-norm, activations, pooling, biases, additions,
recurrent layers and the products inside attention count nothing. Every parameter counts in the parameters.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.overrides import BaseTorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from lpslim.base.modules import Example, call, eval_mode
from lpslim.pruning.units import BATCH_NORMS, CONVOLUTIONS, Units

# Layers whose parameters go with the channels
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
NORMS = (*BATCH_NORMS, nn.SyncBatchNorm, *INSTANCE_NORMS, nn.GroupNorm)
COUNTED = (*CONVOLUTIONS, nn.Linear, *NORMS, nn.PReLU)
PRODUCTS = ("convolution", "mm", "addmm")  # of inputs with weights; attention's own are batched ones


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
    groups: int = 1

    def cost(self, fan_in: int, out: int) -> Cost:
        """Return the cost with other widths."""
        filters = self.kernel * fan_in * out
        return Cost(self.positions * filters, filters + self.vectors * out)


@torch.no_grad()
def layer_costs(model: nn.Module, example: Example) -> list[LayerCost]:
    """Return every convolution, linear layer and norm, measured on one forward pass of an example.

    A layer that is called several times is one entry, at the positions of all calls together; one that is
    never called has no positions, and counts in the parameters alone. A last entry without a name holds the
    products with weights outside of layers.
    """
    counter = FlopCounterMode(display=False)
    with counter, eval_mode(model), BaseTorchFunctionMode():  # under which torch fuses no attention
        call(model, example)
    products = {name: _products(counts) for name, counts in counter.get_flop_counts().items()}
    costs, within = [], 0
    for name, module in model.named_modules():
        macs = products.get(".".join(filter(None, (type(model).__name__, name))), 0)
        if isinstance(module, COUNTED):
            costs.append(_describe(name, module, macs))
        if isinstance(module, (*CONVOLUTIONS, nn.Linear, nn.RNNBase, nn.RNNCellBase)):
            within += macs
    elsewhere = products.get("Global", 0) - within  # such as the projections of nn.MultiheadAttention
    return [*costs, LayerCost("", elsewhere, 1, 1, 1, vectors=-1)] if elsewhere else costs  # uncounted


def _products(counts: dict[object, int]) -> int:
    """Return the multiply-adds among torch's counts by operation, which are twice as many."""
    return sum(flops for operation, flops in counts.items() if str(operation).split(".")[1] in PRODUCTS) // 2


def _describe(name: str, module: nn.Module, macs: int) -> LayerCost:
    if isinstance(module, (*CONVOLUTIONS, nn.Linear)):
        channels, fan_in, *kernel = module.weight.shape
        if isinstance(module, CONVOLUTIONS) and module.transposed:
            channels, fan_in = module.out_channels, channels // module.groups
        positions = macs // (math.prod(kernel) * fan_in * channels)
        bias, groups = int(module.bias is not None), getattr(module, "groups", 1)
        return LayerCost(name, positions, math.prod(kernel), fan_in, channels, bias, groups)
    shared = isinstance(module, nn.PReLU) and module.num_parameters == 1  # one slope for all channels
    vectors = [] if shared else list(module.parameters(recurse=False))
    return LayerCost(name, 0, 0, 0, vectors[0].numel() if vectors else 0, len(vectors))


def parameters(model: nn.Module) -> int:
    """Return the number of all parameters of a network."""
    return sum(parameter.numel() for parameter in model.parameters())


def count(model: nn.Module, example: Example) -> Cost:
    """Return the cost of a network as it stands. example: one input of the network."""
    return CostModel(layer_costs(model, example), [], parameters(model)).dense


class CostModel:
    """Cost of a network with fewer units, without building it.

    layers: of :func:`layer_costs` on the dense network. units: the prunable layers, with the layers that each
    shrinks. params: all parameters of the dense network.
    """

    def __init__(self, layers: Sequence[LayerCost], units: Sequence[Units], params: int) -> None:
        self.layers, self.units = list(layers), list(units)
        # layer, inputs or not -> the units that go there, each with its number of channels
        self.touching: dict[tuple[str, bool], list[tuple[int, int]]] = {}
        for i, unit in enumerate(units):
            own = {(cut.name, cut.reads): len(cut.indices) // unit.size for cut in unit.cuts}
            for side, channels in own.items():
                self.touching.setdefault(side, []).append((i, channels))
        counted = [layer.cost(layer.fan_in, layer.out) for layer in self.layers]
        self.dense = Cost(sum(cost.macs for cost in counted), params)
        self.uncounted = params - sum(cost.params for cost in counted)

    def __call__(self, widths: Sequence[int]) -> Cost:
        """Return the cost with ``widths[i]`` units in layer i."""
        gone = (unit.loose * (unit.size - width) for unit, width in zip(self.units, widths, strict=True))
        macs, params = 0, self.uncounted - sum(gone)
        for layer in self.layers:
            fan_in = layer.fan_in - self._gone(layer, True, widths)
            out = layer.out - self._gone(layer, False, widths)
            cost = layer.cost(fan_in, out)
            macs, params = macs + cost.macs, params + cost.params
        return Cost(macs, params)

    def _gone(self, layer: LayerCost, reads: bool, widths: Sequence[int]) -> int:
        """Return the inputs (of one filter) or outputs that a layer loses."""
        groups, touching = layer.groups if reads else 1, self.touching.get((layer.name, reads), ())
        return sum(channels // groups * (self.units[i].size - widths[i]) for i, channels in touching)

    def flops_drop(self, widths: Sequence[int]) -> float:
        """Return the share of the dense multiply-adds that is gone with ``widths[i]`` units in layer i."""
        return 1 - self(widths).macs / self.dense.macs

    def params_drop(self, widths: Sequence[int]) -> float:
        """Return the share of the dense parameters that is gone with ``widths[i]`` units in layer i."""
        return 1 - self(widths).params / self.dense.params
