"""The gradient out of what was saved of rows (recompute), and the one-pass upstream factor."""

import triton
import triton.language as tl

from anl_kernels.backends.triton.rows import (
    Rows,
    gradient_tile,
    is_target,
    load_classes,
    load_labels,
    load_saved,
    load_scale,
    load_tile,
    row_pointers,
    scaled,
    store_tile,
)


@triton.jit
def row_grad_kernel(
    Z, Y, SCALE, SAVED, GRAD, SHAPE, IGNORE, P, TERMS: tl.constexpr, BLOCK: tl.constexpr
):
    """SCALE carries the upstream gradient, applied before rounding."""
    n, first = tile_of(tl.program_id(0).to(tl.int64), SHAPE, BLOCK)
    exist = n < SHAPE.N
    valid, y = load_labels(Y, SHAPE, IGNORE, n, exist)
    rows = Rows(n, exist, row_pointers(Z, SHAPE, n, BLOCK), valid, valid, y)
    z = load_classes(Z, rows, first, SHAPE.K, BLOCK)
    m, log_s, slopes = load_saved(SAVED, rows, len(TERMS.each))
    slopes = scaled(slopes, rows, load_scale(SCALE, n, valid, BLOCK.acc))
    grad, _ = gradient_tile(z, m, log_s, slopes, P, TERMS, BLOCK)
    grad = tl.where(is_target(rows, first, BLOCK), slopes.gy[:, None], grad)
    store_tile(GRAD, SHAPE, n, exist, first, grad, BLOCK)


@triton.jit
def scale_kernel(T, FACTOR, SHAPE, BLOCK: tl.constexpr):
    """Multiply T by one number in place; return at once when it is 1, unseen by the host.

    A few programs share all tiles, so that the return costs microseconds at any size.
    """
    factor = tl.load(FACTOR).to(BLOCK.acc)
    if factor == 1:
        return
    start = tl.program_id(0).to(tl.int64)
    across = start * 0 + tl.cdiv(SHAPE.K, BLOCK.k)
    for tile in range(start, across * tl.cdiv(SHAPE.N, BLOCK.n), tl.num_programs(0)):
        n, first = tile_of(tile, SHAPE, BLOCK)
        exist = n < SHAPE.N
        values = load_tile(T, SHAPE, row_pointers(T, SHAPE, n, BLOCK), exist, first, BLOCK)
        store_tile(T, SHAPE, n, exist, first, values * factor, BLOCK)


@triton.jit
def tile_of(i, SHAPE, BLOCK: tl.constexpr):
    """The rows and the first class of tile i (int64)."""
    across = tl.cdiv(SHAPE.K, BLOCK.k)
    n = (i // across) * BLOCK.n + tl.arange(0, BLOCK.n)
    return n, (i % across).to(tl.int32) * BLOCK.k
