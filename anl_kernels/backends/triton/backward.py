"""The gradient out of what was saved of rows (recompute), and the one-pass upstream factor."""

import triton
import triton.language as tl

from anl_kernels.backends.triton.rows import (
    Rows,
    gradient_tile,
    load_labels,
    load_others,
    load_saved,
    load_scale,
    row_pointers,
    scaled,
    store_tile,
    tile_pointers,
)


@triton.jit
def row_grad_kernel(
    Z, Y, SCALE, SAVED, GRAD, SHAPE, IGNORE, P, TERMS: tl.constexpr, BLOCK: tl.constexpr
):
    """SCALE carries the upstream gradient, applied before rounding."""
    n, k = tile_of(tl.program_id(0).to(tl.int64), SHAPE, BLOCK)
    exist = n < SHAPE.N
    valid, y = load_labels(Y, SHAPE, IGNORE, n, exist)
    rows = Rows(n, exist, row_pointers(Z, SHAPE, n), valid, valid, y)
    z = load_others(Z, rows, k, SHAPE.K, BLOCK.acc)
    m, log_s, slopes = load_saved(SAVED, rows, len(TERMS.each))
    grad, _ = gradient_tile(rows, z, k, m, log_s, slopes, P, TERMS, BLOCK.acc)
    scale = load_scale(SCALE, n, valid, BLOCK.acc)
    store_tile(GRAD, SHAPE, n, exist, k, scaled(grad, rows, scale))


@triton.jit
def scale_kernel(T, FACTOR, SHAPE, BLOCK: tl.constexpr):
    """Multiply T by one number in place; return at once when it is 1, unseen by the host.

    A few programs share all tiles, so that the return costs microseconds at any size.
    """
    factor = tl.load(FACTOR).to(BLOCK.acc)
    if factor == 1:
        return
    first = tl.program_id(0).to(tl.int64)
    across = first * 0 + tl.cdiv(SHAPE.K, BLOCK.k)
    for tile in range(first, across * tl.cdiv(SHAPE.N, BLOCK.n), tl.num_programs(0)):
        n, k = tile_of(tile, SHAPE, BLOCK)
        mask = (n < SHAPE.N)[:, None] & (k < SHAPE.K)[None, :]
        values = tl.load(tile_pointers(T, SHAPE, n, k), mask=mask).to(BLOCK.acc)
        store_tile(T, SHAPE, n, n < SHAPE.N, k, values * factor)


@triton.jit
def tile_of(i, SHAPE, BLOCK: tl.constexpr):
    """The rows and classes of tile i (int64)."""
    across = tl.cdiv(SHAPE.K, BLOCK.k)
    n = (i // across) * BLOCK.n + tl.arange(0, BLOCK.n)
    return n, (i % across).to(tl.int32) * BLOCK.k + tl.arange(0, BLOCK.k)
