"""Pretrained weights: a state dict in a file, or published weights by name. Data only, never code."""

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


def read(path: Path) -> dict[str, Tensor]:
    """Return the tensors by name in a file of safetensors, or in one that ``torch.save`` wrote.

    A dictionary that holds them under ``state_dict`` or the like is opened, and prefixes that all names
    share (``module.``) are taken off. UserError for anything else; no object in a file is ever called.
    """
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _unpickled(path)
    except Exception as problem:  # torch's readers raise whatever the bytes lead them to
        lines = f"{type(problem).__name__}: {problem}".splitlines()
        reason = next((line for line in lines if "Unsupported" in line), lines[0]).strip()[:120]
        refusal = "not a file of tensors alone, and nothing in it was executed"
        raise UserError(f"model.weights={path}: {refusal} ({reason})") from problem
    for _ in WRAPPERS:  # one may hold another, but a cycle must end
        if isinstance(content, Mapping):
            inside = (content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping))
            content = next(inside, content)
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"model.weights={path}: holds no tensors by name, nor under {', '.join(WRAPPERS)}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(f"model.weights={path}: {name!r} is no tensor's name; expected a state dict")
    state = dict(content)
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in state)), ""):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _unpickled(path: Path) -> Any:
    """Read with torch's own unpickler, which knows tensors and containers and calls nothing else."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > path.stat().st_size:  # torch does not compress: a bomb
            raise ValueError(f"would unpack to {unpacked} bytes")
    with torch.serialization.safe_globals([Namespace]):  # a bare container, in which many keep their settings
        return torch.load(path, map_location="cpu", weights_only=True)


def misfits(stored: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """Return in words what in a state dict does not fit a network's own; empty if all does."""
    faults = []
    for kind, names in (("missing", own.keys() - stored.keys()), ("unexpected", stored.keys() - own.keys())):
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        faults += [f"{kind} {', '.join(sorted(names)[:SHOWN])}{more}"] if names else []
    for name in sorted(own.keys() & stored.keys()):
        theirs, ours = ((tuple(t.shape), t.is_floating_point()) for t in (stored[name], own[name]))
        if theirs != ours:
            kinds = [f"{shape} {'floating' if floating else 'whole'}" for shape, floating in (theirs, ours)]
            faults.append(f"{name}: {kinds[0]} in the file, {kinds[1]} in the network")
    return "; ".join(faults[:SHOWN])


def load_into(model: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Copy a state dict into a network; UserError, and nothing copied, if it does not fit."""
    own = model.state_dict()
    counters = {name: value for name, value in own.items() if name.endswith("num_batches_tracked")}
    if faults := misfits({**counters, **state}, own):
        raise UserError(f"model.weights={origin}: does not fit: {faults}")
    for name, value in state.items():
        if value.layout != torch.strided or value.is_meta or not value.isfinite().all():
            raise UserError(f"model.weights={origin}: {name} holds values that are no finite numbers")
    model.load_state_dict({**own, **state})


def identity(source: str, published: Mapping[str, Any]) -> str:
    """Return ``sha256:<hex>`` of a file, or the full name of an entry of :meth:`Family.published`.

    UserError if ``source`` is neither.
    """
    if Path(source).is_file():
        return f"sha256:{file_hash(Path(source))}"
    if source not in published:
        names = f", or one of {', '.join(published)}" if published else ""
        raise UserError(f"model.weights={source}: must be a file that exists{names}")
    return str(published[source])


def initialise(
    model: nn.Module, source: str, published: Mapping[str, Any], aliases: Sequence[tuple[str, str]]
) -> None:
    """Copy the weights that ``source`` names into a network; published ones are downloaded if need be.

    aliases: pairs of a prefix that others use and ours, which act where the network lacks a name as it
    is. UserError if the weights are not there, cannot be downloaded, or do not fit.
    """
    identity(source, published)  # refuses what is not there
    if Path(source).is_file():
        state = read(Path(source))
    else:
        try:
            state = dict(published[source].get_state_dict(check_hash=True, weights_only=True, progress=False))
        except (OSError, RuntimeError) as problem:  # RuntimeError: not the published hash
            advice = f"fetch {published[source].url} and give the file"
            raise UserError(f"model.weights={source}: download failed ({problem}); {advice}") from problem
    own = model.state_dict()
    for theirs, ours in aliases:
        for name in [name for name in state if name.startswith(theirs) and name not in own]:
            state[ours + name.removeprefix(theirs)] = state.pop(name)
    load_into(model, state, source)
