"""What the Triton interpreter does otherwise than a GPU, mended for the tests.

It truncates float32 to bfloat16 where hardware rounds to nearest even, reads bfloat16 denormals
wrongly, and lets NumPy warn of the infinities and NaNs that kernels select away.
"""

import numpy as np


def act_like_hardware():
    import triton.language as tl
    from triton.runtime import interpreter

    convert = interpreter._convert_float
    launch = interpreter.GridExecutor.__call__

    def convert_float(values, source, result, rounding_mode):
        if (source, result) == (tl.float32, tl.bfloat16):
            return to_bfloat16(values)
        if (source, result) == (tl.bfloat16, tl.float32):
            return from_bfloat16(values)
        return convert(values, source, result, rounding_mode)

    def launch_silently(self, *args, **kwargs):
        with np.errstate(all="ignore"):
            return launch(self, *args, **kwargs)

    interpreter._convert_float = convert_float
    interpreter.GridExecutor.__call__ = launch_silently


def to_bfloat16(values):
    """The bits of float32 values rounded to nearest even, as uint16."""
    bits = np.asarray(values, np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def from_bfloat16(bits):
    """The bits of float32 values, as uint32."""
    return np.asarray(bits).view(np.uint16).astype(np.uint32) << 16
