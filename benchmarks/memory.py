"""Peak resident memory of a step, on Linux."""

from __future__ import annotations

import gc
import re
from pathlib import Path

from benchmarks.timing import Step


def peak_growth(step: Step) -> int:
    """Bytes by which resident memory rises at most during ``step``.

    The kernel's own high-water mark, since PyTorch keeps none for the CPU: it sees what any
    library allocates, if it is touched. Only a fresh process tells the truth, whose allocator has
    no free memory to hand out unseen.

    Raises:
        OSError: the system is not Linux.
    """
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the mark falls to what is resident now
    before = _resident("VmRSS")
    step()
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.M)
    if found is None:
        raise OSError(f"/proc/self/status has no {field}")
    return int(found[1]) << 10
