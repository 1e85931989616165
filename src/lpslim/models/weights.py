"""Pretrained weights in files, downloaded or one's own: state dicts, read as data and never as code."""

import re
import zipfile
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lpslim.base.errors import SHOWN, UserError, listed
from lpslim.base.files import file_hash

WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile
HASH = re.compile(r"-([0-9a-f]{8,})\.")  # in the name of a published file
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation of its pixels


@dataclass(frozen=True)
class Published:
    """Pretrained weights to download: a file in whose name are the first digits of its SHA-256.

    name: in keys. mean, std: those of the normalisation that the weights were trained under, per channel,
    for pixels from 0 to 1.
    """

    name: str
    url: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def fetch(self, folder: str | None = None) -> Path:
        """Return the file in ``folder``, or in torch.hub's, where it is downloaded if it is not there yet.

        UserError, with the place where it may be put by hand, if it is not there whole.
        """
        file = self.url.rpartition("/")[2]
        place = Path(folder) if folder else Path(torch.hub.get_dir()) / "checkpoints"
        path, (prefix,) = place / file, HASH.findall(file)
        try:
            if not folder and not path.exists():
                place.mkdir(parents=True, exist_ok=True)
                torch.hub.download_url_to_file(self.url, str(path), prefix, progress=False)  # appears whole
            if not file_hash(path).startswith(prefix):
                raise OSError("its SHA-256 is another")
        except (OSError, RuntimeError, HTTPException) as problem:  # RuntimeError: not the published hash
            advice = f"{self.url} may be put into {place} by hand"
            raise UserError(f"model.weights: {file} cannot be had ({problem}); {advice}") from problem
        return path


def read(path: Path) -> dict[str, Tensor]:
    """Return the tensors by name in a file of safetensors, or in one that ``torch.save`` wrote.

    They may lie under ``state_dict`` or the like; prefixes that all names share (``module.``) are taken off.
    UserError for anything else; no object in a file is ever called.
    """
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _unpickled(path)
    except Exception as problem:  # torch's readers raise whatever the bytes lead them to
        lines = f"{type(problem).__name__}: {problem}".splitlines()
        reason = next((line for line in lines if "Unsupported" in line), lines[0]).strip()[:120]
        refusal = "not a file of tensors alone, and nothing in it was executed"
        raise UserError(f"model.weights={path}: {refusal} ({reason})") from problem
    for key in WRAPPERS * 2:  # one may hold another
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    state = dict(content) if isinstance(content, Mapping) else {}
    if not state or not all(isinstance(n, str) and isinstance(v, Tensor) for n, v in state.items()):
        raise UserError(f"model.weights={path}: no tensors by name, alone or under {', '.join(WRAPPERS)}")
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
        faults += [f"{kind} {listed(sorted(names))}"] if names else []
    for name in sorted(own.keys() & stored.keys()):
        pair = (stored[name], own[name])
        theirs, ours = (f"{tuple(t.shape)} {'floating' if t.is_floating_point() else 'whole'}" for t in pair)
        if theirs != ours:
            faults.append(f"{name}: {theirs} in the file, {ours} in the network")
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
