"""Names to modules, inside our own packages only: a config can name code, never supply it."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from lpslim.errors import UserError


def choices(package: str) -> list[str]:
    """Return the module names in ``lpslim.<package>``, sorted."""
    home = importlib.import_module(f"lpslim.{package}")
    return sorted(found.name for found in pkgutil.iter_modules(home.__path__))


def find(package: str, name: str) -> ModuleType:
    """Return the module ``lpslim.<package>.<name>``.

    Raises:
        UserError: there is none; the message lists those that exist.
    """
    known = choices(package)
    if name not in known:
        raise UserError(f"{package}: {name!r} is not one of {', '.join(known)}")
    return importlib.import_module(f"lpslim.{package}.{name}")
