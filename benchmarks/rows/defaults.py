"""What the suite measures on each device, unless one asks otherwise."""

from __future__ import annotations

from typing import Any

from benchmarks.subjects import SUBJECTS

CPU: dict[str, Any] = {
    "shapes": [
        (4096, 1000),
        (1024, 32000),
        (512, 128256),
        (128, 256000),
        (8, 1000000),
        (65536, 10),
        (128, 10),
    ],
    "typical_shape": (1024, 32000),
    "dtypes": ["float32", "bfloat16"],
    "scales": [1.0, 3.0, 5.0],
    "tables": ["main", "terms", "memory"],
    "regime": "both",
    "seconds": 2.0,
}
CPU_QUICK: dict[str, Any] = {
    "shapes": [(1024, 32000), (65536, 10), (128, 10)],
    "dtypes": ["float32"],
    "scales": [3.0],
    "tables": ["main", "memory"],
    "regime": "warm",
    "seconds": 1.0,
}
# A GPU may be lent by the minute: the shapes with a bar come first, and the limit leaves out what
# would come too late. Compilers take most of the time, for a peer once for each shape and dtype.
CUDA: dict[str, Any] = {
    "shapes": [
        (8192, 131072),
        (8192, 32768),
        (8192, 65536),
        (8192, 262144),
        (8192, 50257),
        (4096, 1000),
        (65536, 10),
        (8, 1000000),
    ],
    "typical_shape": (8192, 131072),
    "dtypes": ["bfloat16", "float32"],
    "term_dtypes": ["bfloat16"],
    "scales": [3.0],
    "tables": ["main", "terms"],
    "regime": "default",
    "seconds": 1.0,
    "limit": 240.0,
}
CUDA_QUICK: dict[str, Any] = {
    "shapes": [(8192, 32768), (65536, 10)],
    "dtypes": ["bfloat16"],
    "tables": ["main"],
    "seconds": 0.5,
    "limit": 60.0,
}
DEFAULTS = {"cpu": (CPU, CPU_QUICK), "cuda": (CUDA, CUDA_QUICK)}


def defaults(device: str, quick: bool) -> dict[str, Any]:
    """Of the arguments; a device that does not exist gets the CPU's."""
    full, less = DEFAULTS.get(device, DEFAULTS["cpu"])
    subjects = [name for name, subject in SUBJECTS.items() if device in subject.devices]
    return {"subjects": subjects} | full | (less if quick else {})
