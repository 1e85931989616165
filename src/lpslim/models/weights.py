"""Weights from outside: a state dict in a file, or torchvision's by name. Data only, never code."""

from __future__ import annotations

import zipfile
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lpslim.base.errors import UserError
from lpslim.base.hashing import file_hash

WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile
SHOWN = 5  # names in a message
State = dict[str, Tensor]


def read(path: Path) -> State:
    """Return the state dict in a file: safetensors, or what ``torch.save`` wrote.

    A dictionary that holds it under ``state_dict`` or the like is opened, and prefixes that all
    names share (``module.``) are taken off.

    Raises:
        UserError: there is no such file, or it holds something else than tensors by name. Objects
            that would execute code are refused by torch's loader; nothing of theirs runs.
    """
    if not path.is_file():
        raise UserError(f"model.weights={path}: no such file")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _unpickled(path)
    except Exception as problem:  # torch's readers raise whatever the bytes lead them to
        reason = _foreign(path) or f"{type(problem).__name__}: {str(problem).partition(chr(10))[0][:100]}"
        raise UserError(
            f"model.weights={path}: not a checkpoint of tensors alone, and nothing in it was executed "
            f"({reason})"
        ) from problem
    return _stripped(_unwrapped(content, path))


def _unpickled(path: Path) -> Any:
    """Read by torch's own unpickler, which knows tensors and containers and calls nothing else."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > path.stat().st_size:  # torch packs nothing: a bomb
            raise ValueError(f"would unpack to {unpacked} bytes")
    with torch.serialization.safe_globals([Namespace]):  # a bare container, in which many keep their settings
        return torch.load(path, map_location="cpu", weights_only=True)


def _foreign(path: Path) -> str:
    """Return which kinds of objects made torch refuse a file, and the way out; nothing if it was not that."""
    try:
        found = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # it only reads, but not every file can be read
        return ""
    names = ", ".join(sorted(found)[:SHOWN])
    return (
        f"it holds {names}: save its state dict alone, on a machine where you trust the file" if found else ""
    )


def _unwrapped(content: Any, path: Path) -> State:
    for _ in WRAPPERS:  # one may hold another, but a cycle must end
        if isinstance(content, Mapping):
            inside = (content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping))
            content = next(inside, content)
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"model.weights={path}: holds no tensors by name, nor under {', '.join(WRAPPERS)}")
    strange = [key for key, value in content.items() if not isinstance(value, Tensor)]
    if strange:
        raise UserError(f"model.weights={path}: {strange[0]!r} is no tensor; expected a state dict")
    if odd := [key for key in content if not isinstance(key, str)]:
        raise UserError(f"model.weights={path}: {odd[0]!r} is no name; expected a state dict")
    return dict(content)


def _stripped(state: State) -> State:
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in state):
            return _stripped({name.removeprefix(prefix): value for name, value in state.items()})
    return state


def renamed(state: State, own: Mapping[str, Tensor], aliases: Sequence[tuple[str, str]]) -> State:
    """Return the state dict under the network's own names.

    aliases: pairs of a prefix that others use and ours; they act where the network lacks a name as it is.
    """
    result = {}
    for name, value in state.items():
        options = (ours + name.removeprefix(theirs) for theirs, ours in aliases if name.startswith(theirs))
        result[name if name in own else next(options, name)] = value
    return result


def load_into(model: nn.Module, state: State, origin: str) -> None:
    """Copy a state dict into ``model``; nothing is copied when it does not fit.

    Raises:
        UserError: the names that are missing or unexpected, the shapes that differ, or a tensor with
            values that are no finite numbers.
    """
    own = model.state_dict()
    counters = {n: tuple(value.shape) for n, value in own.items() if n.endswith("num_batches_tracked")}
    if faults := misfits({**counters, **{n: tuple(value.shape) for n, value in state.items()}}, own):
        raise UserError(f"model.weights={origin}: does not fit: " + "; ".join(faults))
    if odd := [name for name, value in state.items() if not _numbers(value)]:
        raise UserError(f"model.weights={origin}: {odd[0]} holds values that are no finite numbers")
    model.load_state_dict({**own, **state})


def _numbers(value: Tensor) -> bool:
    return value.layout == torch.strided and not value.is_meta and bool(value.isfinite().all())


def misfits(stored: Mapping[str, tuple[int, ...]], own: Mapping[str, Tensor]) -> list[str]:
    """Return in words which names and shapes of a file are not those of a network's state dict."""
    faults = [
        _listed("missing", [n for n in own if n not in stored]),
        _listed("unexpected", [n for n in stored if n not in own]),
    ]
    faults += [
        f"{n}: {stored[n]} in the file, {tuple(own[n].shape)} in the network"
        for n in own
        if n in stored and stored[n] != tuple(own[n].shape)
    ][:SHOWN]
    return [fault for fault in faults if fault]


def _listed(kind: str, names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{kind} {', '.join(names[:SHOWN])}{more}" if names else ""


def identity(source: str, published: Mapping[str, Any]) -> str:
    """Return ``sha256:<hex>`` of a file, or the full name of published weights.

    published: the weights that can be downloaded, by name; see :meth:`Family.published`.

    Raises:
        UserError: ``source`` is neither a file nor one of these names.
    """
    if Path(source).is_file():
        return f"sha256:{file_hash(Path(source))}"
    return str(_entry(source, published))


def _entry(source: str, published: Mapping[str, Any]) -> Any:
    if source not in published:
        names = f", or one of {', '.join(published)}" if published else ""
        raise UserError(f"model.weights={source}: must be a file that exists{names}")
    return published[source]


def initialise(
    model: nn.Module, source: str, published: Mapping[str, Any], aliases: Sequence[tuple[str, str]]
) -> None:
    """Copy the weights that ``source`` names into ``model``; published ones are downloaded if need be.

    Raises:
        UserError: they are not there, cannot be downloaded, or do not fit.
    """
    if Path(source).is_file():
        state = read(Path(source))
    else:
        entry = _entry(source, published)
        try:
            state = dict(entry.get_state_dict(progress=False, check_hash=True, weights_only=True))
        except (OSError, RuntimeError) as problem:  # RuntimeError: not the published hash
            raise UserError(
                f"model.weights={source}: could not be downloaded ({problem}); "
                f"fetch {entry.url} yourself and give the file"
            ) from problem
    load_into(model, renamed(state, model.state_dict(), aliases), source)
