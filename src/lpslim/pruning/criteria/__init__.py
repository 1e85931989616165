"""Criteria: one module each, whose ``score`` gives every output channel a number; the lowest go first.

    score(model, units, batches) -> list of float64 tensors (channels,), one per layer

A criterion that cannot score every network has ``check(model, units)`` too, which raises a UserError.
``batches`` yields training images (B, C, H, W), augmented; criteria that look at weights alone do
not draw from it. Scores are raw: how those of different layers compare is chosen apart
(:data:`lpslim.pruning.selection.ACROSS`).
"""
