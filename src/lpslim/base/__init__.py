"""Foundations of all packages: errors, files, hashing, registry, helpers for modules."""
