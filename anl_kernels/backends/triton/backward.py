"""The gradient out of what was saved of rows (recompute), and the one-pass upstream factor."""

import triton
import triton.language as tl

from anl_kernels.backends.triton.forward import load_scale
from anl_kernels.backends.triton.rows import (
    class_of,
    gradient_tile,
    load_labels,
    load_others,
    load_saved,
    row_pointers,
    store_tile,
)


@triton.jit
def row_grad_kernel(
    Z, Y, SCALE, SAVED, GRAD, N, K, M, IGNORE, P,
    TERMS: tl.constexpr, ACC: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile a program; SCALE carries the upstream gradient, applied before rounding."""
    tiles = tl.cdiv(K, BLOCK_K)
    pid = tl.program_id(0).to(tl.int64)
    n = (pid // tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = (pid % tiles).to(tl.int32) * BLOCK_K + tl.arange(0, BLOCK_K)
    in_rows = n < N
    label, counted = load_labels(Y, n, in_rows, IGNORE)
    y = class_of(label, counted, K)
    z = load_others(Z, row_pointers(Z, n, M), k, y, counted, K, ACC)
    m, log_s, slopes = load_saved(SAVED, n, counted, len(TERMS))
    grad, _ = gradient_tile(z, k, y, m, log_s, slopes, P, TERMS, ACC)
    scale = load_scale(SCALE, n, counted, ACC)
    store_tile(GRAD, n, M, k, in_rows, K, tl.where(counted[:, None], grad * scale[:, None], 0.0))


@triton.jit
def scale_kernel(
    T, FACTOR, N, K, M, ACC: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr
):
    """Multiply T by one number in place; return at once when it is 1, unseen by the host.

    A few programs share all tiles, so that the return costs microseconds at any size.
    """
    factor = tl.load(FACTOR).to(ACC)
    if factor == 1:
        return
    first = tl.program_id(0).to(tl.int64)
    across = first * 0 + tl.cdiv(K, BLOCK_K)
    for tile in range(first, across * tl.cdiv(N, BLOCK_N), tl.num_programs(0)):
        n = (tile // across) * BLOCK_N + tl.arange(0, BLOCK_N)
        k = (tile % across).to(tl.int32) * BLOCK_K + tl.arange(0, BLOCK_K)
        mask = (n < N)[:, None] & (k < K)[None, :]
        pointers = row_pointers(T, n, M)[:, None] + k.to(tl.int64)[None, :] * T[2]
        values = tl.load(pointers, mask=mask).to(ACC)
        store_tile(T, n, M, k, n < N, K, values * factor)
