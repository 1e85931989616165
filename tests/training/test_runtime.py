"""Device and precision by what the machine can do, anew for each training; memory that stays."""

import ctypes
import platform
from types import SimpleNamespace

import pytest
import torch

from lpslim.base.errors import UserError
from lpslim.training import distributed
from lpslim.training.distributed import make_accelerator, resolved
from lpslim.training.schedule import RuntimeConfig

GLIBC = {-1: 2**31 - 1, -3: 2**30}  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Pretend a machine with these CPU flags (None: unknown), and a GPU of this capability (None: none)."""

    def pretend(flags, capability=None):
        monkeypatch.setattr(distributed, "CPU_INFO", tmp_path / "cpuinfo")
        if flags is not None:
            (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags\t\t: fpu avx2 {flags}\n")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)

    return pretend


@pytest.mark.parametrize(
    ("device", "precision", "flags", "gpu", "expected"),
    [
        ("auto", "auto", "avx512f avx512_bf16", None, ("cpu", "bf16")),
        ("auto", "auto", "amx_bf16 amx_tile", None, ("cpu", "bf16")),
        ("cpu", "auto", "avx512f", None, ("cpu", "fp32")),
        ("auto", "auto", None, None, ("cpu", "fp32")),
        ("cuda", "auto", "avx2", (8, 0), ("cuda", "bf16")),
        ("auto", "auto", "avx512_bf16", (7, 5), ("cuda", "fp32")),
        ("cpu", "auto", "avx512_bf16", (7, 5), ("cpu", "bf16")),
        ("auto", "fp32", "avx512_bf16", (9, 0), ("cuda", "fp32")),
        ("cpu", "bf16", "avx2", None, ("cpu", "bf16")),
    ],
)
def test_auto_is_bf16_where_the_device_has_it(machine, device, precision, flags, gpu, expected):
    machine(flags, gpu)
    found = resolved(RuntimeConfig(device=device, precision=precision))
    assert (found.device, found.precision) == expected


def test_a_processor_has_the_name_of_the_gpu_or_cpu(machine, monkeypatch):
    machine("avx2\nmodel name\t: Some CPU @ 2.00GHz\nmodel name\t: Some CPU @ 2.00GHz")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    assert [distributed.processor(device) for device in ("cpu", "cuda")] == ["Some CPU @ 2.00GHz", "Some GPU"]
    distributed.CPU_INFO.unlink()  # not Linux
    assert distributed.processor("cpu") == platform.processor()


def test_each_training_has_its_own_device_and_one_that_is_not_there_is_refused(machine, monkeypatch):
    everywhere = SimpleNamespace(is_available=lambda: True, is_built=lambda: True)
    monkeypatch.setattr(torch.backends, "mps", everywhere)
    for capability, device in ((None, "cpu"), ((9, 0), "cuda"), (None, "cpu")):
        machine("", capability)
        assert make_accelerator(RuntimeConfig()).device.type == device
    with pytest.raises(UserError, match=r"trainer\.device=cuda.*auto or cpu"):
        make_accelerator(RuntimeConfig(device="cuda"))
    with pytest.raises(UserError, match=r"trainer\.cuda_graphs=true.*must be false"):
        make_accelerator(RuntimeConfig(cuda_graphs=True))


def test_freed_memory_stays_unless_the_environment_configures_malloc(monkeypatch):
    asked = {}
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=asked.__setitem__))
    for variable, expected in (("GLIBC_TUNABLES", {}), ("MALLOC_TOP_PAD_", {}), ("HOME", GLIBC)):
        monkeypatch.setattr("os.environ", {variable: "1"})
        distributed.keep_freed_memory()
        assert asked == expected
