"""Content keys: canonical JSON of what a stage depends on, hashed. No input or output here.

Equal descriptions give equal keys on every machine; ``tests/unit/test_keys.py``
holds literal keys, so that a change of this file that would orphan stored stages
cannot pass unnoticed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

KEY_LENGTH = 16


def canonical(value: Any) -> str:
    """Return the one JSON text of ``value``: sorted keys, no spaces, no NaN.

    JSON's view of things: 1 and 1.0 differ (so types must be settled before: the schema does it),
    and a dictionary's key 1 is the key "1".

    Raises:
        ValueError: ``value`` holds a NaN or an infinity.
        TypeError: ``value`` is not made of JSON types.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """Return the hexadecimal SHA-256 of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def stage_key(stage: str, version: int, depends_on: Mapping[str, Any], parent: str | None) -> str:
    """Return the key of a stage: its name and code version, its settings, its parent's key."""
    described = {"stage": stage, "version": version, "config": depends_on, "parent": parent}
    return digest(described)[:KEY_LENGTH]


def derive_seed(seed: int, *purpose: str | int) -> int:
    """Return an independent 63-bit seed for one purpose, such as ``("finetune", "order", 3)``."""
    return int(digest([seed, *purpose])[:16], 16) >> 1
