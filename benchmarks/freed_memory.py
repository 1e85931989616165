"""A training step on a CPU with memory that malloc keeps (lpslim.allocator), beside one without.

    python benchmarks/freed_memory.py --quick

Processes take turns, one of either kind a round, as what malloc keeps is settled once in a process. Each
does some plain steps on random images of 32x32 (benchmarks/admm_overhead.py): its median step, and the pages
that a step takes anew from the system. Medians of the rounds, quartiles in brackets. Five minutes on two CPU
cores, two with --quick.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from statistics import median
from typing import Any

import timing
import torch
from admm_overhead import NETWORKS, Plain
from lpslim.allocator import keep_freed_memory
from timing import Spread

SHOWN = ("resnet56", "vgg16")
WARM, STEPS = 3, 5
ONE = "--one"  # how this program calls itself


def one(network: str, kept: bool, threads: int) -> dict[str, float]:
    """Return milliseconds and new pages of a step in this process."""
    torch.set_num_threads(threads)
    if kept and not keep_freed_memory():
        raise SystemExit("malloc is not glibc's, or is set up by the environment")
    step = Plain(network, NETWORKS[network].batch)
    for _ in range(WARM):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    times = [timing.seconds(step) for _ in range(STEPS)]
    pages = (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / STEPS
    return {"step_ms": 1e3 * median(times), "pages": pages}


def measure(network: str, rounds: int, threads: int) -> dict[str, Any]:
    """Return one row of figures."""
    found: dict[str, list[dict[str, float]]] = {"given_back": [], "kept": []}
    for done in range(rounds):
        for kind in sorted(found, reverse=bool(done % 2)):
            words = [sys.executable, __file__, ONE, network, kind, str(threads)]
            told = subprocess.run(words, capture_output=True, text=True, check=True).stdout
            found[kind].append(json.loads(told))
    times = {kind: [each["step_ms"] for each in runs] for kind, runs in found.items()}
    return {
        "network": network,
        "batch": NETWORKS[network].batch,
        **{f"{kind}_ms": Spread.of(taken) for kind, taken in times.items()},
        **{f"{kind}_pages": median(each["pages"] for each in runs) for kind, runs in found.items()},
        "ratio": timing.ratio(times, "kept", over="given_back"),
    }


def main() -> None:
    """Measure, print and write."""
    if sys.argv[1:2] == [ONE]:
        network, kind, threads = sys.argv[2:]
        print(json.dumps(one(network, kind == "kept", int(threads))))
        return
    options = timing.parser(__doc__, "freed_memory").parse_args()
    host, rows = timing.begin(options), []
    for network in SHOWN:
        rows.append(row := measure(network, 3 if options.quick else 7, options.threads))
        print(
            f"{network:<9} given back {row['given_back_ms']} ms, {row['given_back_pages']:.0f} pages a step"
        )
        print(f"{'':<9} kept       {row['kept_ms']} ms, {row['kept_pages']:.0f} pages; time x {row['ratio']}")
    timing.write(options, host, rows)


if __name__ == "__main__":
    main()
