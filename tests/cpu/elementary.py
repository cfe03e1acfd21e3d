"""The elementary functions of the kernels, beside NumPy's in a wider type."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from anl_kernels.backends.choice import extension

FUNCTIONS = ("exp", "exp_nonpositive", "expm1", "log", "log1p")
WIDER = {np.float32: np.float64, np.float64: np.longdouble}


def call(name, x):
    """One of ``FUNCTIONS`` of an array."""
    x = torch.from_numpy(np.ascontiguousarray(x))
    y = torch.empty_like(x)
    extension("cpu").elementary(FUNCTIONS.index(name), x, y)
    return y.numpy()


def ulps(y, truth, dtype):
    """The error of y in units of the last place that ``truth`` has in ``dtype``."""
    kind = np.finfo(dtype)
    exponent = np.maximum(np.frexp(truth)[1] - 1, kind.minexp)
    return np.abs(np.ldexp(y.astype(truth.dtype) - truth, kind.nmant - exponent))


class Bound(NamedTuple):
    """The most ulps that a function may be off between two arguments."""

    name: str
    dtype: type
    low: Callable
    high: Callable
    most: float

    def __repr__(self):
        kind = np.finfo(self.dtype)
        return f"{self.name}-{self.dtype.__name__}-{self.low(kind):.3g}-{self.high(kind):.3g}"

    def worst(self, x):
        """(the largest error, its argument) among those of x that the bound concerns."""
        kind = np.finfo(self.dtype)
        x = x[(x >= self.low(kind)) & (x <= self.high(kind))]
        with np.errstate(all="ignore"):
            wide = x.astype(WIDER[self.dtype])
            truth = getattr(np, self.name.removesuffix("_nonpositive"))(wide)
            finite = np.abs(truth) <= kind.max
            errors = ulps(call(self.name, x)[finite], truth[finite], self.dtype)
        where = np.argmax(np.where(np.isnan(errors), np.inf, errors))
        return errors[where], x[finite][where]


def number(x):
    """A limit that does not depend on the type."""
    return lambda kind: x


def smallest(kind):
    return kind.tiny


def largest(kind):
    return kind.max


def lowest(kind):
    return -kind.max


def log_of_smallest(kind):
    return np.nextafter(np.log(kind.tiny), kind.dtype.type(0))


def above_minus_one(kind):
    return np.nextafter(kind.dtype.type(-1), kind.dtype.type(0))


# What csrc/cpu/math.h states.
BOUNDS = [
    Bound("exp_nonpositive", np.float32, number(-20), number(0), 2.7),
    Bound("exp_nonpositive", np.float32, log_of_smallest, number(-20), 5),
    Bound("exp_nonpositive", np.float64, log_of_smallest, number(0), 1.5),
    *(
        bound
        for dtype in WIDER
        for bound in (
            Bound("exp", dtype, log_of_smallest, largest, 1.5),
            Bound("exp", dtype, lowest, log_of_smallest, 1),
            Bound("expm1", dtype, lowest, number(88), 2.5),
            Bound("log", dtype, smallest, largest, 1),
            Bound("log1p", dtype, above_minus_one, largest, 2),
        )
    ),
]


def arguments(dtype, step):
    """Numbers of all sizes: every ``step``-th float32, and as many float64 by chance."""
    integer = {np.float32: np.uint32, np.float64: np.uint64}[dtype]
    if dtype == np.float32:
        spread = np.arange(0, 2**32, step, dtype=np.uint64).astype(integer)
    else:
        spread = np.random.default_rng(0).integers(0, 2**64, 2**32 // step, dtype=integer)
    kind = np.finfo(dtype)
    edges = [0.5**0.5, 1, 2**0.5, 20, 88, np.log(2), kind.tiny, kind.max]
    edges += [-np.log(kind.tiny), -np.log(kind.smallest_subnormal), np.log(kind.max)]
    around = [_neighbours(sign * edge, dtype, integer) for edge in edges for sign in (-1, 1)]
    line = np.linspace(
        np.log(kind.smallest_subnormal) - 3, np.log(kind.max) + 3, 2**32 // step // 4
    )
    return np.concatenate([spread.view(dtype), line.astype(dtype), *around])


def _neighbours(x, dtype, integer):
    bits = np.array([x], dtype=dtype).view(integer)
    return (bits + np.arange(-3000, 3000).astype(integer)).view(dtype)
