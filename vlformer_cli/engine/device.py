"""Where tensors live and how many threads work on them."""

from __future__ import annotations

import ctypes
import os
import sys

import torch

from vlformer_cli.types import VLFormerError

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
PRIMITIVES_KEPT = 4096  # of 0.1 to 0.5 MB each


def pick_device(name: str) -> torch.device:
    """`auto` is cuda where there is one, else cpu; raises VLFormerError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    here = devices_here()
    if name not in here and f"{name}:0" not in here:
        raise VLFormerError(f"there is no device {name!r}: --device takes auto, {', '.join(here)}")
    device = torch.device(name)
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise VLFormerError(f"device {name!r} cannot be used ({str(error).splitlines()[0]}): try cpu") from error
    return device


def devices_here() -> list[str]:
    """The names of this machine's devices, as `--device` takes them."""
    here = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    here += [f"xpu:{index}" for index in range(torch.xpu.device_count())]
    return here + ["mps"] * torch.backends.mps.is_available()


def usable_cores() -> int:
    """Cores that this process may run on, which a container or taskset can make fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_used(device: torch.device) -> str:
    """Peak memory so far: of the GPU where there is one, otherwise of this process, in GiB."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB"
    return f"{peak_resident() / 2**30:.1f} GiB"


def peak_resident() -> int:
    """The most bytes of main memory that this process has held."""
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2) counts in kilobytes, on macOS in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def keep_freed_memory() -> None:
    """glibc keeps what this process frees, for the next tensors. Elsewhere: nothing happens.

    By itself it maps each block above 32 MB anew and gives it back, and the system clears it page by page: a fifth of
    the time of a training step of vlformer-r50 on a CPU. See mallopt(3). Memory is held that other processes could use.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def keep_many_primitives() -> None:
    """oneDNN keeps more of the machine code that it makes for each shape of a product, as a training has many shapes.

    By itself it keeps 1,024 pieces, one or two steps of vlformer-tiny; making the others anew was a tenth of a step.
    To be called before the first product. A capacity that the environment names stays.
    """
    if "DNNL_PRIMITIVE_CACHE_CAPACITY" not in os.environ:  # the variable's old name
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(PRIMITIVES_KEPT))


def set_threads(count: int) -> None:
    """Threads of torch on the CPU; 0: one per usable core."""
    torch.set_num_threads(count or usable_cores())
