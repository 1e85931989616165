"""Criteria: one module each, whose ``score`` gives every unit a number; the lowest go first."""
