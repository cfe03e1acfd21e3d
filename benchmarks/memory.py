"""Peak memory of a step: resident on Linux, allocated on a GPU."""

from __future__ import annotations

import ctypes
import gc
import re
from pathlib import Path

import torch

from benchmarks.clocks import Step


def peak_growth(step: Step) -> int:
    """Bytes by which resident memory rises at most during ``step``.

    The kernel's own high-water mark, since PyTorch keeps none for the CPU: it sees what any
    library allocates, if it is touched. Only a fresh process tells the truth, whose allocator has
    no free memory to hand out unseen.

    Raises:
        OSError: the system is not Linux.
    """
    gc.collect()
    _trim_heap()
    Path("/proc/self/clear_refs").write_text("5")  # the mark falls to what is resident now
    before = _resident("VmRSS")
    step()
    return _resident("VmHWM") - before


def peak_allocated(step: Step) -> int:
    """Bytes of PyTorch's GPU allocator by which ``step`` exceeds at most what there was before.

    What a library takes past that allocator is not seen.
    """
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _trim_heap() -> None:
    """Return what the allocator holds free, which would serve the step unseen; glibc alone can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


def _resident(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.M)
    if found is None:
        raise OSError(f"/proc/self/status has no {field}")
    return int(found[1]) << 10
