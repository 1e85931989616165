"""From a network to a smaller one: units, scores, budget, removal."""
