"""Environment of a run: package versions, machine and source revision, as its record states them."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

from lpslim.training import distributed

SOURCES = ("--", ":/src", ":/conf", ":/run.py")  # for git: from the top, wherever it is asked
PACKAGES = ("lpslim", "torch", "torchvision", "torch-pruning", "accelerate", "transformers", "tokenizers")


def environment(device: str) -> dict[str, str | int | bool | None]:
    """Return the versions, machine and source revision that a record of a run on a resolved device states."""
    versions = {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}}
    machine = {"platform": platform.platform(terse=True), "machine": platform.machine(), "device": device,
               "processor": distributed.processor(device)}  # fmt: skip
    counts = {"threads": torch.get_num_threads(), "processes": distributed.share().world}
    own = _git("ls-files", "--error-unmatch", Path(__file__).name) is not None  # not a repository around ours
    revision = {"commit": _git("rev-parse", "HEAD") if own else None,
                "dirty": bool(own and _git("status", "--porcelain", *SOURCES))}  # fmt: skip
    return {**versions, **machine, **counts, **revision}


def _git(*arguments: str) -> str | None:
    command, here = ["git", *arguments], Path(__file__).parent
    try:
        return subprocess.run(command, cwd=here, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None  # installed from a package: there is no repository to name
