"""Feed spoilt files to what reads files of others: it must accept or refuse them, and do nothing else.

    python -m tests.security.fuzzing --seconds 60 [--target records|checkpoint|architecture] [--seed 0]

Prints how many inputs were tried, accepted and refused by each target. Any other outcome, a crash of
the reader included, is a fault: it is shown with the input, and the program fails.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from lpslim import architecture, checkpoints, lookup, pretrained, records
from lpslim.architecture import Architecture
from lpslim.errors import UserError
from tests.unit import synthetic

# what a value may become: other types, the edges of numbers, and texts that mean something somewhere
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**30, -(10**12), 0.5, -0.0, 1e308, float("nan"),
    float("inf"), "", "0", "x" * 500, "../../x", "/etc/passwd", "$\\frac{$", "=1+1", "\x00", "é\u202e", [],
    {}, [[]], [1, 2], {"a": {}}, {"__class__": "os.system"}, "bert", "resnet20", "torchvision_zoo", "NaN",
)  # fmt: skip
WORDS = (b"NaN", b"1e999", b"{", b"}", b"[", b'"', b"\x00", b"\xff", b"-", b"9" * 400, b"[" * 2000, b"null")


@dataclass(frozen=True)
class Target:
    """A reader, and the valid files that spoilt ones are made of: (file name, content) in a folder each."""

    read: Callable[[Path], object]
    valid: tuple[dict[str, bytes], ...]


def spoil_bytes(random_: random.Random, data: bytes) -> bytes:
    """Flip, cut, repeat, overwrite or insert a few bytes."""
    changed = bytearray(data)
    for _ in range(random_.choice((1, 1, 2, 4, 16))):
        at = random_.randrange(len(changed) + 1)
        kind = random_.randrange(6)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << random_.randrange(8)
        elif kind == 1:
            del changed[at:]
        elif kind == 2:
            changed[at:at] = random_.choice(WORDS)
        elif kind == 3:
            del changed[at : at + random_.randrange(1, 40)]
        elif kind == 4:
            changed[at : at + 8] = random_.choice((0, 1, 255, 2**31, 2**63)).to_bytes(8, "little")
        else:
            changed[at:at] = changed[at : at + random_.randrange(1, 200)]
    return bytes(changed)


def odd(random_: random.Random) -> Any:
    """Return an odd value, its lists and objects new: a later change must not reach other inputs."""
    return copy.deepcopy(random_.choice(ODD))


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value in nested JSON."""
    children = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in children:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


def spoil_json(random_: random.Random, data: bytes) -> bytes:
    """Replace, remove, add, rename or swap values, keeping the text JSON (with NaN and the like)."""
    content = json.loads(data)
    for _ in range(random_.choice((1, 1, 1, 2, 5))):
        *way, last = random_.choice(list(places(content)) or [("x",)])
        node = content
        for part in way:
            node = node[part]
        kind = random_.randrange(5)
        if kind <= 1 or isinstance(node, list):
            node[last] = odd(random_)
        elif kind == 2:
            node.pop(last, None)
        elif kind == 3:
            node[str(odd(random_))] = odd(random_)
        else:
            other = random_.choice(list(node) or [last])
            node[last], node[other] = node.get(other), node.get(last)
        if not content:
            break
    return json.dumps(content).encode()


def spoil_header(random_: random.Random, data: bytes) -> bytes:
    """Spoil the JSON header of a safetensors file; its length is told as it is, mostly."""
    length = int.from_bytes(data[:8], "little")
    header = spoil_json(random_, data[8 : 8 + length])
    told = len(header) + random_.choice((0, 0, 0, 0, 1, -1, 2**40))
    return max(told, 0).to_bytes(8, "little") + header + data[8 + length :]


def spoil(random_: random.Random, name: str, data: bytes) -> bytes:
    """Return a spoilt form of a file, by its structure two times of three where that is known."""
    ways = {".json": spoil_json, ".safetensors": spoil_header}
    chosen = ways.get(Path(name).suffix, spoil_bytes) if random_.random() < 2 / 3 else spoil_bytes
    return chosen(random_, data)


def _network(family: str, name: str, shape: tuple[int, ...], kept: dict[str, list[int]]) -> dict[str, bytes]:
    """Return the files of a saved network."""
    arguments: dict[str, Any] = {"num_classes": 3, "in_channels": 3}
    if family == "bert":
        arguments = {"num_classes": 3, "configuration": pretrained.configuration(name)}
    described = Architecture(family, name, shape, arguments, kept)
    with tempfile.TemporaryDirectory() as folder:
        architecture.save(Path(folder), described.build(), described)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def _written(name: str, write: Callable[[Path], object]) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / name)
        return {name: (Path(folder) / name).read_bytes()}


def target(name: str) -> Target:
    """Return a target by its name: a key of TARGETS."""
    torch.manual_seed(0)
    if name == "records":
        diverged = {"stage": "finetune", "epoch": 1, "step": 2, "loss": "nan"}
        made = (synthetic.record("a/b"), synthetic.record(diverged=diverged, accuracy={}, cost={"rule": "x"}))
        texts = [json.dumps(asdict(each)).encode() for each in made]
        return Target(lambda folder: records.read(folder / "r.json"), tuple({"r.json": t} for t in texts))
    if name == "architecture":
        layer = "transformer.bert.encoder.layer.0"
        return Target(architecture.load, (
            _network("vgg", "vgg_small", (3, 8, 8), {"features.0": [0, 3], "features.7": [*range(9)]}),
            _network("resnet_cifar", "resnet20", (3, 8, 8), {"layer1.0.conv1": [1, 2, 5]}),
            _network("bert", "tiny", (3, 16), {f"{layer}.intermediate.dense": [0, 7],
                                               f"{layer}.attention.self.query": [1, 3]}),
        ))  # fmt: skip
    state = lookup.find("models", "vgg").build("vgg_small", num_classes=3).state_dict()
    few = dict(list(state.items())[:8])
    wrapped = {"state_dict": few, "epoch": 3, "optimizer": {"lr": 0.1, "betas": (0.9, 0.99)}}
    files = (
        _written("w.safetensors", lambda path: save_file(few, path)),
        _written("w.pt", lambda path: torch.save(wrapped, path)),
        _written("w.pth", lambda path: torch.save(wrapped, path, _use_new_zipfile_serialization=False)),
    )
    return Target(lambda folder: checkpoints.read(next(folder.glob("w.*"))), files)


TARGETS = ("records", "checkpoint", "architecture")


def attempt(chosen: Target, seed: str, folder: Path) -> str:
    """Write one spoilt input into ``folder`` and read it; return ``accepted``, ``refused`` or a traceback."""
    random_ = random.Random(seed)
    files = random_.choice(chosen.valid)
    spoilt = random_.choice(sorted(files))
    for name, data in files.items():
        (folder / name).write_bytes(spoil(random_, name, data) if name == spoilt else data)
    try:
        chosen.read(folder)
    except UserError:
        return "refused"
    except Exception:
        return traceback.format_exc()
    return "accepted"


def run(name: str, seed: int, *, count: int | None = None, seconds: float = float("inf")) -> Counter[str]:
    """Try spoilt inputs of one target until ``count`` or ``seconds`` are reached.

    Raises:
        AssertionError: one had another outcome; the message says which, and shows it.
    """
    chosen, outcomes, ends = target(name), Counter[str](), time.monotonic() + seconds
    while time.monotonic() < ends and (count is None or outcomes.total() < count):
        with tempfile.TemporaryDirectory(prefix="lpslim-fuzz-") as folder:
            outcome = attempt(chosen, f"{name} {seed} {outcomes.total()}", Path(folder))
            if outcome not in ("accepted", "refused"):
                shown = {path.name: path.read_bytes()[:4000] for path in Path(folder).iterdir()}
                raise AssertionError(f"{name}, seed {seed}, input {outcomes.total()}: {shown}\n{outcome}")
        outcomes[outcome] += 1
    return outcomes


def main() -> int:
    """Try all targets for an equal share of the time; return the exit code."""
    parser = argparse.ArgumentParser("python -m tests.security.fuzzing", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--target", choices=TARGETS, action="append")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chosen = options.target or TARGETS
    for name in chosen:
        outcomes = run(name, options.seed, seconds=options.seconds / len(chosen))
        print(f"{name}: {outcomes.total()} inputs tried, {outcomes['accepted']} accepted, "
              f"{outcomes['refused']} refused", flush=True)  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
