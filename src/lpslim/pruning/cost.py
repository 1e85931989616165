"""One counting rule: multiply-adds of convolution and linear layers, all parameters.

Batch-norm, activations, pooling, biases and additions count nothing in the multiply-adds
("FLOPs" in the tables). Every parameter of the network counts in the parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lpslim.base.errors import UserError
from lpslim.base.modules import evaluating
from lpslim.pruning.units import Units

# Layers with a weight per channel, or several, that go with the channel
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.PReLU)
COUNTED = (nn.Conv2d, nn.Linear, *NORMS)


@dataclass(frozen=True)
class Cost:
    """Multiply-adds for one input, and parameters."""

    macs: int
    params: int


@dataclass(frozen=True)
class LayerCost:
    """The factors of one layer's cost: macs = positions * kernel * fan_in * out.

    ``kernel`` is the kernel's area, ``fan_in`` the input channels that one filter reads (1
    if depthwise), ``vectors`` the parameters per output channel besides the filter (bias,
    batch-norm scale and shift).
    """

    name: str
    positions: int
    kernel: int
    fan_in: int
    out: int
    vectors: int

    def cost(self, fan_in: int, out: int) -> Cost:
        """Return the cost with other widths."""
        filters = self.kernel * fan_in * out
        return Cost(self.positions * filters, filters + self.vectors * out)


@torch.no_grad()
def layer_costs(model: nn.Module, example: Tensor) -> list[LayerCost]:
    """Return every convolution, linear layer and norm, measured on one forward pass.

    A layer that is called several times is one entry, at the positions of all calls together.
    example: one input of the network, on its device. The model's mode is kept.

    Raises:
        UserError: a convolution or linear layer is not called as such, so that its cost is unknown.
    """
    found: dict[str, LayerCost] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, COUNTED):

            def record(module: nn.Module, _: tuple[Tensor, ...], out: Tensor, name: str = name) -> None:
                each, before = _describe(name, module, out), found.get(name)
                positions = each.positions + (before.positions if before else 0)
                found[name] = replace(each, positions=positions)

            handles.append(module.register_forward_hook(record))
    try:
        with evaluating(model):
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and name not in found:
            raise UserError(f"layer {name!r}: is not called by itself: its multiply-adds cannot be counted")
    return list(found.values())


def _describe(name: str, module: nn.Module, out: Tensor) -> LayerCost:
    if not isinstance(module, nn.Conv2d | nn.Linear):
        shared = isinstance(module, nn.PReLU) and module.num_parameters == 1  # one slope for all channels
        own = [] if shared else list(module.parameters(recurse=False))
        return LayerCost(name, 0, 0, 0, own[0].numel() if own else 0, len(own))
    vectors = int(module.bias is not None)
    if isinstance(module, nn.Conv2d):
        area = module.kernel_size[0] * module.kernel_size[1]
        fan_in = module.in_channels // module.groups
        return LayerCost(name, out.shape[-2] * out.shape[-1], area, fan_in, module.out_channels, vectors)
    assert isinstance(module, nn.Linear)
    positions = out[0, ..., 0].numel()
    return LayerCost(name, positions, 1, module.in_features, module.out_features, vectors)


def count(model: nn.Module, example: Tensor) -> Cost:
    """Return the cost of a network as it stands. example: (1, C, H, W)."""
    macs = sum(each.cost(each.fan_in, each.out).macs for each in layer_costs(model, example))
    return Cost(macs, sum(p.numel() for p in model.parameters()))


class CostModel:
    """What a network would cost with fewer units, without building it.

    Args:
        layers: of :func:`layer_costs` on the dense network.
        units: the prunable layers, with the layers that each shrinks.
        params: the parameters of the dense network, all of them.
    """

    def __init__(self, layers: Sequence[LayerCost], units: Sequence[Units], params: int) -> None:
        self.layers, self.units = list(layers), list(units)
        self.producer = {name: i for i, each in enumerate(units) for name in each.producers}
        self.consumer = {name: i for i, each in enumerate(units) for name in each.consumers}
        counted = [each.cost(each.fan_in, each.out) for each in self.layers]
        self.dense = Cost(sum(cost.macs for cost in counted), params)
        self.uncounted = params - sum(cost.params for cost in counted)

    def __call__(self, kept: Sequence[int]) -> Cost:
        """Return the cost with ``kept[i]`` units in layer i."""
        macs, params = 0, self.uncounted
        for layer in self.layers:
            fan_in = self._width(layer.fan_in, self.consumer.get(layer.name), kept)
            out = self._width(layer.out, self.producer.get(layer.name), kept)
            cost = layer.cost(fan_in, out)
            macs, params = macs + cost.macs, params + cost.params
        return Cost(macs, params)

    def _width(self, dense: int, unit: int | None, kept: Sequence[int]) -> int:
        # a flattened feature map feeds several inputs of a linear layer per channel
        return dense if unit is None else dense // self.units[unit].size * kept[unit]

    def flops_drop(self, kept: Sequence[int]) -> float:
        """Return the share of the dense multiply-adds that is gone with ``kept[i]`` units in layer i."""
        return 1 - self(kept).macs / self.dense.macs

    def params_drop(self, kept: Sequence[int]) -> float:
        """Return the share of the dense parameters that is gone with ``kept[i]`` units in layer i."""
        return 1 - self(kept).params / self.dense.params
