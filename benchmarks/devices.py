"""The devices that can be measured, and what measuring needs to know of each."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.clocks import Clock, CudaClock, HostClock, QueueClock, Step
from benchmarks.memory import peak_allocated

TYPICAL_CACHE = 32 << 20
"""Where the system does not tell: 32 MiB."""
CACHE_FILES = "level", "shared_cpu_list", "size"
MIN_COPIES = 2
"""The copy that is restored before a step should not be the one it runs on."""


@dataclass(frozen=True)
class Device:
    """A kind of device."""

    tensors: str
    """Where PyTorch puts the tensors."""
    why_not: Callable[[], str | None]
    """The reason that it cannot be measured on this machine, or None."""
    cache_bytes: Callable[[], int]
    """Size of the cache that inputs must not be found in."""
    clock: Callable[[], Clock]
    """Of the device's own time."""
    host_clock: Callable[[], Clock]
    """Of the time until the host has queued a step."""
    min_copies: int
    """Of the inputs, however large."""
    peak_growth: Callable[[Step], int] | None
    """Bytes that a step takes at most beside what there was, if a warm process can tell."""
    release: Callable[[], None]
    """Give back what earlier cases left in allocators."""


def last_level_cache() -> int:
    """Bytes of all caches of the last level, as Linux tells them: some processors have several."""
    found: dict[int, dict[str, int]] = {}
    for cache in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cache/index*"):
        level, shared, size = ((cache / of).read_text().strip() for of in CACHE_FILES)
        found.setdefault(int(level), {})[shared] = int(size.removesuffix("K")) << 10
    return sum(found[max(found)].values()) if found else TYPICAL_CACHE


def l2_cache() -> int:
    """Bytes of the GPU's L2."""
    return torch.cuda.get_device_properties().L2_cache_size or TYPICAL_CACHE


def _why_no_gpu() -> str | None:
    if torch.cuda.is_available():
        return None
    if torch.version.cuda or torch.version.hip:
        return f"no GPU is visible to PyTorch {torch.__version__}"
    return f"PyTorch {torch.__version__} was built without CUDA and without ROCm"


def _release_gpu() -> None:
    gc.collect()
    torch.cuda.empty_cache()


DEVICES = {
    "cpu": Device(
        tensors="cpu",
        why_not=lambda: None,
        cache_bytes=last_level_cache,
        clock=HostClock,
        host_clock=HostClock,
        min_copies=MIN_COPIES,
        peak_growth=None,
        release=lambda: None,
    ),
    "cuda": Device(
        tensors="cuda",
        why_not=_why_no_gpu,
        cache_bytes=l2_cache,
        clock=CudaClock,
        host_clock=QueueClock,
        min_copies=MIN_COPIES,
        peak_growth=peak_allocated,
        release=_release_gpu,
    ),
}
"""By the name that PyTorch gives the type: "cuda" is ROCm too."""
