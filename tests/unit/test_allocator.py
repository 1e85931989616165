"""What malloc keeps is told by the pages that a process takes anew."""

import platform
import subprocess
import sys

import pytest

LOOP = """
import resource, sys
import torch
from lpslim.allocator import keep_freed_memory
kept = len(sys.argv) > 1 and keep_freed_memory()
step = lambda: [torch.zeros(2**24) for _ in range(3)]  # three times 64 MB, written and freed
for _ in range(5):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(kept, (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 5)
"""


def pages(*words, **environment):
    done = subprocess.run(
        [sys.executable, "-c", LOOP, *words], capture_output=True, text=True, check=True,
        env={"PYTHONPATH": ":".join(sys.path), **environment},
    )  # fmt: skip
    kept, faults = done.stdout.split()
    return kept == "True", int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another malloc")
def test_freed_memory_is_taken_again_without_new_pages():
    kept, faults = pages("keep")
    assert kept
    assert 10 * faults < pages()[1]


def test_what_the_environment_sets_up_is_left_alone():
    kept, _ = pages("keep", MALLOC_TRIM_THRESHOLD_="1000000")
    assert not kept
