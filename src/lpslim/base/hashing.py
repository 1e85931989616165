"""Canonical JSON, its SHA-256, and seeds derived from it: equal values, equal results on every machine."""

import hashlib
import json
from pathlib import Path
from typing import Any


def canonical(value: Any) -> str:
    """Return the one JSON text of ``value``: sorted keys, no spaces; 1 and 1.0 differ.

    ValueError for a NaN or an infinity, TypeError for what is not made of JSON types.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """Return the hexadecimal SHA-256 of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def derive_seed(seed: int, *purpose: str | int) -> int:
    """Return an independent 63-bit seed for one purpose, such as ``("finetune", "order", 3)``."""
    return int(digest([seed, *purpose])[:16], 16) >> 1
