"""Network slimming using Lp (p<1) regularization: prune a network by ADMM, and check the paper."""

from lpslim.api import Pruned, prune, save
from lpslim.architecture import load

__all__ = ["Pruned", "load", "prune", "save"]
