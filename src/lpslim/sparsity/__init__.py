"""The method: the Lp-ADMM and its penalties. Tensors in, tensors out; knows nothing of networks."""
