"""Plug-ins by name: modules of one of our packages, or of an installed package that declares entry points.

A configuration names code, it never supplies it. The plug-in packages are ``sparsity.penalties``,
``pruning.criteria``, ``training.regularizers``, ``models.families`` and ``data.datasets``; the entry-point
group of each is ``lpslim.<its last part>``, such as ``lpslim.penalties``.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from lpslim.base.errors import UserError
from lpslim.base.files import file_hash

ROOT = Path(__file__).parents[1]
T = TypeVar("T")


def choices(package: str) -> list[str]:
    """Return the names of all plug-ins of a package, sorted; nothing is imported."""
    return sorted({*_own(package), *_installed(package)})


def find(package: str, name: str) -> ModuleType:
    """Return a plug-in's module, our own before installed ones; UserError with the choices if none."""
    if name in _own(package):
        return importlib.import_module(f"lpslim.{package}.{name}")
    if (found := _installed(package).get(name)) is not None:
        module: ModuleType = found.load()
        return module
    raise UserError(f"{package}: {name!r} is not one of {', '.join(choices(package))}")


def source_hash(package: str, name: str) -> str | None:
    """Return the SHA-256 of an installed plug-in's source file; None for our own, whose code has versions."""
    if name in _own(package):
        return None
    source = inspect.getsourcefile(find(package, name))
    assert source is not None
    return file_hash(Path(source))


def arguments(
    build: Callable[..., object], knobs: Mapping[str, Any], options: Mapping[str, Any], key: str
) -> dict[str, Any]:
    """Return the keyword arguments of a plug-in's ``build``: ``knobs`` that it asks for, and ``options``.

    key: the configuration key of the options, for the message. UserError: an option is unknown to ``build``,
    or a parameter without a default is not given.
    """
    parameters = inspect.signature(build).parameters
    own = [name for name in parameters if name not in knobs]
    for name in options:
        if name not in own:
            known = f"one of {', '.join(own)}" if own else "there are none"
            raise UserError(f"{key}.{name}={options[name]}: no such option; {known}")
    given = {**{name: knobs[name] for name in parameters if name in knobs}, **options}
    for name in own:
        if name not in given and parameters[name].default is inspect.Parameter.empty:
            raise UserError(f"{key}.{name}: must be given")
    return given


def _own(package: str) -> list[str]:
    files = (ROOT / package.replace(".", "/")).glob("*.py")
    return [file.stem for file in files if not file.stem.startswith("_")]


def _installed(package: str) -> dict[str, EntryPoint]:
    return {found.name: found for found in entry_points(group=f"lpslim.{package.rpartition('.')[2]}")}
