"""Foundations that every other package stands on: errors, files, hashing, registry. Knows no other package."""
