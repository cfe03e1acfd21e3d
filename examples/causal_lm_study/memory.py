"""Peak memory of training steps: resident on Linux, allocated on a GPU."""

from __future__ import annotations

import ctypes
import gc
import re
from pathlib import Path

import torch

import anl_kernels as ak

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Peak:
    """``start()``, then ``read()``: the bytes by which memory rose at most in between."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.known = self.on_gpu or CLEAR.exists()
        self.before = 0

    def start(self) -> None:
        """Give free memory back, which would serve unseen, and let the mark fall."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        elif self.known:
            ak.empty_cpu_cache()
            trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
            if trim:
                trim(0)
            CLEAR.write_text("5")
            self.before = _resident("VmRSS")

    def read(self) -> int | None:
        """The rise since then; None where the system does not tell."""
        if self.on_gpu:
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated() - self.before
        return _resident("VmHWM") - self.before if self.known else None


def _resident(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", STATUS.read_text(), re.M)
    if found is None:
        raise OSError(f"{STATUS} has no {field}")
    return int(found[1]) << 10
