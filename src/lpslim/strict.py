"""JSON files that may come from anybody: of bounded size, and nothing in them but what a type allows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from lpslim.errors import UserError

SHOWN = 60  # characters of a value in a message
MISSING, UNKNOWN = "missing", ("extra_forbidden", "unexpected_keyword_argument")  # pydantic's kinds


def read(path: Path, shape: TypeAdapter[Any], what: str, largest: int) -> dict[str, Any]:
    """Return the object in a JSON file, its values as they stand there.

    Args:
        path: the file. shape: what the object must be; strict, whatever its own configuration says.
        what: for the message, such as ``a record``. largest: size in bytes from which on it is not read.

    Raises:
        UserError: ``<path>: not <what>: <where and why>``.
    """
    try:
        raw = _content(path, largest)
        shape.validate_json(raw, strict=True)
        found: dict[str, Any] = json.loads(raw, parse_constant=_refuse, object_pairs_hook=_once)
    except ValidationError as problem:
        raise UserError(f"{path}: not {what}: {first(problem)}") from problem
    except RecursionError as problem:
        raise UserError(f"{path}: not {what}: nested too deep") from problem
    except (OSError, ValueError) as problem:
        raise UserError(f"{path}: not {what}: {problem}") from problem
    return found


def _content(path: Path, largest: int) -> bytes:
    if not path.is_file():  # a pipe or a device would never end
        raise ValueError("no such file")
    with open(path, "rb") as file:
        raw = file.read(largest + 1)
    if len(raw) > largest:
        raise ValueError(f"larger than {largest} bytes")
    return raw


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):  # a reader and a program might each see another of the two
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r:.{SHOWN}} is there twice")
    return found


def first(problem: ValidationError) -> str:
    """Return the first fault on one line: where, what is there, what it should be."""
    fault = problem.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in fault["loc"])[:200]
    if fault["type"] == "json_invalid":
        return fault["msg"]
    if fault["type"] == MISSING:
        return f"{where}: missing"
    if fault["type"] in UNKNOWN:
        return f"{where}: unknown"
    found = repr(fault["input"])
    cut = found if len(found) <= SHOWN else f"{found[: SHOWN - 3]}..."
    return f"{where}={cut}: {fault['msg'].removeprefix('Value error, ')}".lstrip("=")
