"""Loss of every row and, in the one-pass form, its gradient: one read of the logits from memory.

``row_tile_kernel`` holds whole rows in registers, several of them in a program when they are
short; ``row_sweep_kernel`` walks a long row in blocks, and counts on the cache for the sweeps
after the first. Both work on any strides: with the class dimension first (segmentation), a tile's
rows are the contiguous direction.
"""

import triton
import triton.language as tl

from anl_kernels.backends.triton.rows import (
    add_dense,
    anchor,
    any_of,
    finish_rows,
    full_tile,
    labelled_rows,
    load_others,
    load_scale,
    load_target,
    normalise,
    or_zero,
    row_pointers,
    rows_of_program,
    store_outputs_tile,
    sum_tiles,
    zero_tiles,
)


@triton.jit
def row_tile_kernel(
    Z, Y, SCALE, W, OUT, GRAD, PROBS, SHAPE, IGNORE, P,
    TERMS: tl.constexpr, ALL_ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n, exist = rows_of_program(SHAPE, BLOCK)
    rows = labelled_rows(row_pointers(Z, SHAPE, n), Y, SHAPE, IGNORE, n, exist, ALL_ROWS)
    z_y = load_target(Z, rows, False, BLOCK.acc)
    k = tl.arange(0, BLOCK.k)
    z = load_others(Z, rows, k, SHAPE.K, BLOCK.acc)

    m_others, mass = tile_others(z)
    softmax = normalise(m_others, mass, z_y)
    shift = or_zero(m_others)
    total, count = shift, shift
    if TERMS.linear:
        total, count = tile_linear(z, m_others, BLOCK.acc)
    S, D = tile_dense(z, softmax, P, TERMS, BLOCK)
    linear = (total, count, shift)
    slopes = finish_rows(OUT, W, rows, softmax, linear, S, D, P, TERMS, BLOCK.acc)
    if OUT.argmax is not None:
        best = first_of_equals(z, k[None, :], m_others, SHAPE.K - 1)
        store_argmax(OUT, rows, m_others, best, z_y)
    if (GRAD.data is not None) or (PROBS.data is not None):
        scale = load_scale(SCALE, n, exist, BLOCK.acc)
        store_outputs_tile(
            GRAD, PROBS, SHAPE, rows, z, k, softmax, slopes, scale, P, TERMS, BLOCK.acc
        )


@triton.jit
def row_sweep_kernel(
    Z, Y, SCALE, W, OUT, GRAD, PROBS, SHAPE, IGNORE, P,
    TERMS: tl.constexpr, ALL_ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n, exist = rows_of_program(SHAPE, BLOCK)
    rows = labelled_rows(row_pointers(Z, SHAPE, n), Y, SHAPE, IGNORE, n, exist, ALL_ROWS)
    z_y = load_target(Z, rows, False, BLOCK.acc)
    stop = tl.where(any_of(rows.loaded), SHAPE.K, 0)  # ignored rows are not read

    z_0 = z_y
    if TERMS.linear:
        z_0 = anchor(Z, rows, z_y, 0, SHAPE.K, 1, BLOCK.acc)
    m_others, mass, total, count, best = sweep_others(
        Z, rows, z_0, 0, stop, TERMS.linear, OUT.argmax is not None, BLOCK
    )
    softmax = normalise(m_others, mass, z_y)
    S, D = sweep_dense(Z, rows, 0, stop, softmax, P, TERMS, BLOCK)
    linear = (total, count, z_0)
    slopes = finish_rows(OUT, W, rows, softmax, linear, S, D, P, TERMS, BLOCK.acc)
    if OUT.argmax is not None:
        store_argmax(OUT, rows, m_others, best, z_y)
    if (GRAD.data is not None) or (PROBS.data is not None):
        scale = load_scale(SCALE, n, exist, BLOCK.acc)
        for start in range(0, SHAPE.K, BLOCK.k):
            k = start + tl.arange(0, BLOCK.k)
            z = load_others(Z, rows, k, SHAPE.K, BLOCK.acc)
            store_outputs_tile(
                GRAD, PROBS, SHAPE, rows, z, k, softmax, slopes, scale, P, TERMS, BLOCK.acc
            )


@triton.jit
def tile_others(z):
    """(max, sum of exp(z - max)) of the others in a tile of whole rows."""
    m_others = tl.max(z, 1)
    return m_others, tl.sum(tl.exp(z - or_zero(m_others)[:, None]), 1)


@triton.jit
def tile_linear(z, m_others, ACC: tl.constexpr):
    """(sum of z - max, count) of the others in a tile of whole rows."""
    there = z > -float("inf")
    total = tl.sum(tl.where(there, z - or_zero(m_others)[:, None], 0.0), 1)
    return total, tl.sum(there.to(ACC), 1)


@triton.jit
def tile_dense(z, softmax, P, TERMS: tl.constexpr, BLOCK: tl.constexpr):
    """Sums over the others in a tile of whole rows of every dense term's phi and its slope."""
    S = zero_tiles(TERMS.num_dense, BLOCK)
    S, D = add_dense(S, S, z, softmax, P, TERMS, BLOCK.acc)
    return sum_tiles(S), sum_tiles(D)


@triton.jit
def sweep_others(
    Z, rows, z_0, start, stop, LINEAR: tl.constexpr, ARGMAX: tl.constexpr, BLOCK: tl.constexpr
):
    """Partials of the others in [start, stop), each (BLOCK.n,).

    Returns (max, sum of exp(z - max), sum of z - z_0, count, index of the max). Every lane keeps
    its own running maximum, so a block costs one exp an element and no reduction; lanes merge at
    the end. They start at the lowest finite number, where -inf may arrive without making
    inf - inf.
    """
    ACC: tl.constexpr = BLOCK.acc
    lowest: tl.constexpr = -1.7976931348623157e308 if ACC == tl.float64 else -3.4028234663852886e38
    m = full_tile(lowest, BLOCK, ACC)
    mass = full_tile(0, BLOCK, ACC)
    total = full_tile(0, BLOCK, ACC)
    count = full_tile(0, BLOCK, ACC)
    best = full_tile(0, BLOCK, tl.int32)
    for first in range(start, stop, BLOCK.k):
        k = first + tl.arange(0, BLOCK.k)
        z = load_others(Z, rows, k, stop, ACC)
        d = z - m
        e = tl.exp(-tl.abs(d))
        mass = tl.where(d > 0, mass * e + 1, mass + e)
        if ARGMAX:
            best = tl.where(d > 0, k[None, :], best)
        m = tl.maximum(m, z)
        if LINEAR:
            there = z > -float("inf")
            total += tl.where(there, z - z_0[:, None], 0.0)
            count += there.to(ACC)
    m_others = tl.max(m, 1)
    mass = tl.sum(mass * tl.exp(m - m_others[:, None]), 1)
    index = tl.zeros(rows.n.shape, tl.int32)
    if ARGMAX:
        index = first_of_equals(m, best, m_others, stop - 1)
    return m_others, mass, tl.sum(total, 1), tl.sum(count, 1), index


@triton.jit
def sweep_dense(Z, rows, start, stop, softmax, P, TERMS: tl.constexpr, BLOCK: tl.constexpr):
    """Sums over the others in [start, stop) of every dense term's phi and its slope."""
    S = zero_tiles(TERMS.num_dense, BLOCK)
    D = zero_tiles(TERMS.num_dense, BLOCK)
    if TERMS.num_dense > 0:
        for first in range(start, stop, BLOCK.k):
            k = first + tl.arange(0, BLOCK.k)
            z = load_others(Z, rows, k, stop, BLOCK.acc)
            S, D = add_dense(S, D, z, softmax, P, TERMS, BLOCK.acc)
    return sum_tiles(S), sum_tiles(D)


@triton.jit
def first_of_equals(values, index, m, last):
    """The lowest ``index`` of a row's maximum m among its values; ``last`` where m is NaN."""
    return tl.min(tl.where(values == m[:, None], index, last), 1)


@triton.jit
def store_argmax(OUT, rows, m_others, best, z_y):
    """The class of the largest logit: the lowest such index."""
    ahead = (z_y > m_others) | ((z_y == m_others) & (rows.y < best))
    tl.store(OUT.argmax + rows.n, tl.where(ahead, rows.y, best), mask=rows.exist)
