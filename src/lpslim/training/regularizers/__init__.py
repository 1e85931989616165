"""Regularisers of the sparsify stage, one module each: see :mod:`lpslim.training.callbacks`."""
