"""Network slimming using Lp (p<1) regularization: prune a network by ADMM, and check the paper."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lpslim.models.onnx import to_onnx
    from lpslim.models.storage import load, save
    from lpslim.pruning.prune import Pruned, prune
    from lpslim.training.callbacks import ChannelADMM

    __version__: str

__all__ = ["ChannelADMM", "Pruned", "__version__", "load", "prune", "save", "to_onnx"]

MODULES = {
    "ChannelADMM": "training.callbacks",
    "Pruned": "pruning.prune",
    "prune": "pruning.prune",
    "load": "models.storage",
    "save": "models.storage",
    "to_onnx": "models.onnx",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that whatever needs no torch does not wait for it."""
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("lpslim")
    if name not in MODULES:
        raise AttributeError(f"module 'lpslim' has no attribute {name!r}")
    return getattr(importlib.import_module(f"lpslim.{MODULES[name]}"), name)
