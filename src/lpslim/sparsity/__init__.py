"""The method: the Lp-ADMM and its penalties, on tensors alone."""
