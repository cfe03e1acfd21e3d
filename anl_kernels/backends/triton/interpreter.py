"""What Triton's interpreter does otherwise than a GPU, mended while our kernels run.

It truncates float32 to bfloat16 where hardware rounds to nearest even, reads bfloat16 denormals
wrongly, and lets NumPy warn of the infinities and NaNs that kernels select away.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


@contextmanager
def like_hardware() -> Iterator[None]:
    """Kernels that are launched in this context compute as on a GPU."""
    convert = interpreter._convert_float

    def convert_float(values: Any, source: Any, result: Any, rounding_mode: Any) -> Any:
        if (source, result) == (tl.float32, tl.bfloat16):
            return _to_bfloat16(values)
        if (source, result) == (tl.bfloat16, tl.float32):
            return _from_bfloat16(values)
        return convert(values, source, result, rounding_mode)

    interpreter._convert_float = convert_float
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "All-NaN", RuntimeWarning)  # of a maximum
            yield
    finally:
        interpreter._convert_float = convert


def _to_bfloat16(values: Any) -> Any:
    """The bits of float32 values rounded to nearest even, as uint16."""
    bits = np.asarray(values, np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def _from_bfloat16(bits: Any) -> Any:
    """The bits of float32 values, as uint32."""
    return np.asarray(bits).view(np.uint16).astype(np.uint32) << 16
