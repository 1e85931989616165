"""Helpers for torch modules: evaluation mode, fixed random draws, copies, example inputs, layers by name."""

import copy
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lpslim.base.errors import UserError

TOKEN = 5  # a token id that no vocabulary has for padding
Example = Tensor | tuple[Any, ...] | Mapping[str, Any]
REMEDY = (
    "take weight_norm, spectral_norm, parametrisations or masks off first (remove_parametrizations, "
    "remove_weight_norm, remove_spectral_norm or prune.remove of torch.nn.utils), and delete what a forward "
    "pass has stored on it"
)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Hold ``model`` in evaluation mode; afterwards every module is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def same_draws() -> Iterator[None]:
    """Seed PyTorch, NumPy and Python, by which layers are skipped and inputs masked; afterwards undo it."""
    pythons, numpys = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        try:
            yield
        finally:
            random.setstate(pythons)
            np.random.set_state(numpys)


def call(model: nn.Module, example: Example) -> Any:
    """Run a network on its input: a tensor, a tuple of positional inputs, or a dict of them by keyword."""
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example) if isinstance(example, tuple) else model(example)


def map_tensors(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """Return inputs or outputs with a function applied to every tensor among them."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(entry, function) for key, entry in value.items()}
    if is_dataclass(value) and hasattr(value, "__dict__") and not isinstance(value, type):
        new = copy.copy(value)
        vars(new).update(map_tensors(vars(value), function))
        return new
    mapped = [map_tensors(entry, function) for entry in value] if isinstance(value, tuple | list) else value
    return tuple(mapped) if isinstance(value, tuple) else mapped


def tensors(value: Any) -> list[Tensor]:
    """Return all tensors among inputs or outputs."""
    found: list[Tensor] = []
    map_tensors(value, found.append)
    return found


def copied(model: nn.Module) -> nn.Module:
    """Return a copy of a network; UserError if it cannot be copied.

    Results that a forward pass has left on modules, by themselves or in a list, tuple or dict, are copied
    without gradient.
    """
    made: dict[int, Any] = {}
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        for name, value in vars(module).items():
            several = value.values() if isinstance(value, dict) else value
            entries = list(several) if isinstance(value, dict | list | tuple) else [value]
            for entry in entries:
                computed = {f"{name}_v", f"{name}_orig"} & own.keys()  # a weight: its copy would be stale
                if isinstance(entry, Tensor) and entry.grad_fn is not None and not computed:
                    made[id(entry)] = entry.detach().clone()
    try:
        return copy.deepcopy(model, made)
    except RuntimeError as problem:
        reason = str(problem).partition(".")[0]
        raise UserError(f"{type(model).__name__}: cannot be copied ({reason}): {REMEDY}") from problem
    except TypeError as problem:  # it holds a lock, an open file or the like
        raise UserError(f"{type(model).__name__}: cannot be copied ({problem})") from problem


@contextmanager
def attributes_kept(model: nn.Module) -> Iterator[None]:
    """Restore every module's attributes when the block ends, such as features that a forward pass stored.

    What lists there have gained stays.
    """
    before = [(module, dict(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for module, attributes in before:
            vars(module).clear()
            vars(module).update(attributes)


def example_input(shape: Sequence[int], batch: int = 1) -> Tensor:
    """Return a blank input (batch, *shape): an image (C, H, W) of zeros, or tokens (3, L) without padding."""
    if len(shape) == 3:
        return torch.zeros(batch, *shape)
    tokens = torch.zeros(batch, *shape, dtype=torch.long)
    tokens[:, 0] = TOKEN
    tokens[:, 1] = 1
    return tokens


def matches(layer: str, patterns: Sequence[str]) -> bool:
    """Return whether a pattern matches a layer: its name, that of a module around it, or as a glob."""
    return any(layer == name or layer.startswith(f"{name}.") or fnmatchcase(layer, name) for name in patterns)


def weight_of(model: nn.Module, layer: str) -> Tensor:
    """Return the weight of a layer, detached, as it stores it; UserError if there is none of this name."""
    found = dict(model.named_modules()).get(layer)
    if found is None or not isinstance(weight := getattr(found, "weight", None), Tensor):
        raise UserError(f"layer {layer!r}: the network has none of this name with a weight")
    return weight.detach()


def tied(model: nn.Module) -> dict[str, list[str]]:
    """Return the modules that have a parameter in common with others, each with all that have it."""
    owners: dict[nn.Parameter, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in set(module.parameters(recurse=False)):
            owners.setdefault(parameter, []).append(name)
    return {name: names for names in owners.values() if len(names) > 1 for name in names}
