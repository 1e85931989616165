"""Network slimming using Lp (p<1) regularization: prune a network by ADMM, and check the paper."""

from lpslim.architecture import load

__all__ = ["load"]
