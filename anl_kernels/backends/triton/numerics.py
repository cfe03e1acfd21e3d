"""Scalar functions and run-time parameters, in what every Triton target and the interpreter have.

``exp`` is for where rows are swept: the GPUs' instruction is 2^x, and Triton's own ``exp`` spends
three more on results below 1e-38, which here are 0.

``log1p`` and ``expm1`` follow Kahan: the error made in forming 1 + x is divided out again. They
are used on a few numbers a row, or a few instructions an element; libdevice's are out of reach of
the interpreter.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def exp(x):
    if x.dtype == tl.float64:
        return tl.exp(x)
    return tl.exp2(x * LOG2_E)


@triton.jit
def exp_difference(x, y):
    """exp(x - y), y of rows."""
    if x.dtype == tl.float64:
        return tl.exp(x - y)
    return tl.exp2(tl.fma(x, tl.full((), LOG2_E, x.dtype), -y * LOG2_E))


@triton.jit
def log1p(x):
    u = 1 + x
    return tl.where(u == 1, x, tl.log(u) * (x / tl.where(u == 1, 1, u - 1)))


@triton.jit
def expm1(x):
    u = tl.exp(x)
    # At u = 0 (x very negative) log(u) is infinite; at u = 1 (x tiny) the quotient is 0 / 0.
    inner = (u != 1) & (u > 1e-7)
    log_u = tl.log(tl.where(inner, u, 2.0))
    return tl.where(u == 1, x, tl.where(inner, (u - 1) * (x / log_u), u - 1))


@triton.jit
def power(x, exponent):
    """x^exponent for x >= 0, with 0^0 = 1 and a floor on x that keeps the logarithm finite."""
    return tl.exp(exponent * tl.log(tl.where(x < 1e-35, 1e-35, x)))


@triton.jit
def scalar(P, i: tl.constexpr, ACC: tl.constexpr):
    """Run-time number i of P, a pair of tuples of float32: its leading and trailing digits.

    Triton passes every Python float as float32. Two of them carry 48 bits, enough for float64
    logits to agree with float64 formulas to 1e-14.
    """
    return tl.full((), P[0][i], ACC) + tl.full((), P[1][i], ACC)
