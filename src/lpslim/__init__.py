"""Network slimming using Lp (p<1) regularization: prune a network by ADMM, and check the paper."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lpslim.pruning.prune import Pruned, prune, save
    from lpslim.models.storage import load

__all__ = ["Pruned", "load", "prune", "save"]


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is first asked for: tables are rendered without it."""
    if name not in __all__:
        raise AttributeError(f"module 'lpslim' has no attribute {name!r}")
    from lpslim.pruning import prune
from lpslim.models import storage

    return getattr(architecture if name == "load" else api, name)
