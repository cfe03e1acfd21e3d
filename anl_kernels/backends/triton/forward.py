"""Loss of every row and, in the one-pass form, its gradient: one read of the logits from memory.

``row_tile_kernel`` holds whole rows in registers, several of them in a program when they are
short; ``row_sweep_kernel`` walks a long row in blocks, and counts on the cache for the sweeps
after the first. Both work on any strides: with the class dimension first (segmentation), a tile's
rows are the contiguous direction.

``OUT`` = (loss, saved, term losses, lse, p_y, argmax) and ``GRAD``, ``PROBS`` = (pointer, strides)
hold None for what is not asked for. ``SCALE`` = (pointer, stride) multiplies a row's gradient.
"""

import triton
import triton.language as tl

from anl_kernels.backends.triton.rows import (
    add_dense,
    anchor,
    finish_rows,
    load_others,
    load_target,
    normalise,
    or_zero,
    row_pointers,
    store_sweep_tile,
    sum_tiles,
    zero_tiles,
)


@triton.jit
def row_tile_kernel(
    Z, Y, SCALE, W, OUT, GRAD, PROBS, N, K, M, IGNORE, P,
    TERMS: tl.constexpr, NUM_DENSE: tl.constexpr, LINEAR: tl.constexpr, ALL_ROWS: tl.constexpr,
    ACC: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_rows = n < N
    rows = row_pointers(Z, n, M)
    y, counted, z_y = load_target(Z, Y, rows, n, in_rows, K, IGNORE, False, ACC)
    k = tl.arange(0, BLOCK_K)
    z = load_others(Z, rows, k, y, in_rows if ALL_ROWS else counted, K, ACC)

    m_others, mass = tile_others(z)
    softmax = normalise(m_others, mass, z_y)
    shift = or_zero(m_others)
    total, count = shift, shift
    if LINEAR:
        total, count = tile_linear(z, m_others, ACC)
    S, D = tile_dense(z, softmax, P, TERMS, NUM_DENSE, BLOCK_N, BLOCK_K, ACC)
    slopes = finish_rows(
        OUT, W, n, in_rows, counted, softmax, (total, count, shift), S, D, P, TERMS, ACC
    )
    if OUT[5] is not None:
        best = first_of_equals(z, k[None, :], m_others, K - 1)
        store_argmax(OUT[5], n, in_rows, m_others, best, z_y, y)
    if (GRAD[0] is not None) or (PROBS[0] is not None):
        scale = load_scale(SCALE, n, in_rows, ACC)
        store_sweep_tile(
            GRAD, PROBS, n, M, z, k, y, in_rows, counted, K, scale, softmax, slopes, P, TERMS, ACC
        )


@triton.jit
def row_sweep_kernel(
    Z, Y, SCALE, W, OUT, GRAD, PROBS, N, K, M, IGNORE, P,
    TERMS: tl.constexpr, NUM_DENSE: tl.constexpr, LINEAR: tl.constexpr, ALL_ROWS: tl.constexpr,
    ACC: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_rows = n < N
    rows = row_pointers(Z, n, M)
    y, counted, z_y = load_target(Z, Y, rows, n, in_rows, K, IGNORE, False, ACC)
    loaded = in_rows if ALL_ROWS else counted
    stop = tl.where(tl.max(loaded.to(tl.int32), 0) > 0, K, 0)  # ignored rows are not read

    z_0 = z_y
    if LINEAR:
        z_0 = anchor(Z, rows, y, z_y, loaded, 0, K, 1, ACC)
    m_others, mass, total, count, best = sweep_others(
        Z, rows, y, loaded, z_0, 0, stop, LINEAR, OUT[5] is not None, BLOCK_N, BLOCK_K, ACC
    )
    softmax = normalise(m_others, mass, z_y)
    S, D = sweep_dense(
        Z, rows, y, loaded, 0, stop, softmax, P, TERMS, NUM_DENSE, BLOCK_N, BLOCK_K, ACC
    )
    slopes = finish_rows(
        OUT, W, n, in_rows, counted, softmax, (total, count, z_0), S, D, P, TERMS, ACC
    )
    if OUT[5] is not None:
        store_argmax(OUT[5], n, in_rows, m_others, best, z_y, y)
    if (GRAD[0] is not None) or (PROBS[0] is not None):
        scale = load_scale(SCALE, n, in_rows, ACC)
        for start in range(0, K, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            z = load_others(Z, rows, k, y, loaded, K, ACC)
            store_sweep_tile(
                GRAD, PROBS, n, M, z, k, y, in_rows, counted, K, scale, softmax, slopes, P,
                TERMS, ACC,
            )  # fmt: skip


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
def tile_dense(
    z, softmax, P, TERMS: tl.constexpr, NUM_DENSE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Sums over the others in a tile of whole rows of every dense term's phi and its slope."""
    S = zero_tiles(NUM_DENSE, BLOCK_N, BLOCK_K, ACC)
    S, D = add_dense(S, S, z, softmax[0], softmax[1], P, TERMS, ACC)
    return sum_tiles(S), sum_tiles(D)


@triton.jit
def sweep_others(
    Z, rows, y, loaded, z_0, start, stop, LINEAR: tl.constexpr, ARGMAX: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Partials of the others in [start, stop), each (BLOCK_N,).

    Returns (max, sum of exp(z - max), sum of z - z_0, count, index of the max). Every lane keeps
    its own running maximum, so a block costs one exp an element and no reduction; lanes merge at
    the end. They start at the lowest finite number, where -inf may arrive without making
    inf - inf.
    """
    lowest: tl.constexpr = -1.7976931348623157e308 if ACC == tl.float64 else -3.4028234663852886e38
    m = tl.full((BLOCK_N, BLOCK_K), lowest, ACC)
    mass = tl.zeros((BLOCK_N, BLOCK_K), ACC)
    total = tl.zeros((BLOCK_N, BLOCK_K), ACC)
    count = tl.zeros((BLOCK_N, BLOCK_K), ACC)
    best = tl.zeros((BLOCK_N, BLOCK_K), tl.int32)
    for first in range(start, stop, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        z = load_others(Z, rows, k, y, loaded, stop, ACC)
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
    index = tl.zeros((BLOCK_N,), tl.int32)
    if ARGMAX:
        index = first_of_equals(m, best, m_others, stop - 1)
    return m_others, mass, tl.sum(total, 1), tl.sum(count, 1), index


@triton.jit
def sweep_dense(
    Z, rows, y, loaded, start, stop, softmax, P, TERMS: tl.constexpr, NUM_DENSE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Sums over the others in [start, stop) of every dense term's phi and its slope."""
    S = zero_tiles(NUM_DENSE, BLOCK_N, BLOCK_K, ACC)
    D = zero_tiles(NUM_DENSE, BLOCK_N, BLOCK_K, ACC)
    if NUM_DENSE > 0:
        for first in range(start, stop, BLOCK_K):
            k = first + tl.arange(0, BLOCK_K)
            z = load_others(Z, rows, k, y, loaded, stop, ACC)
            S, D = add_dense(S, D, z, softmax[0], softmax[1], P, TERMS, ACC)
    return sum_tiles(S), sum_tiles(D)


@triton.jit
def first_of_equals(values, index, m, last):
    """The lowest ``index`` of a row's maximum m among its values; ``last`` where m is NaN."""
    return tl.min(tl.where(values == m[:, None], index, last), 1)


@triton.jit
def store_argmax(ARGMAX, n, in_rows, m_others, best, z_y, y):
    """The class of the largest logit: the lowest such index."""
    ahead = (z_y > m_others) | ((z_y == m_others) & (y < best))
    tl.store(ARGMAX + n, tl.where(ahead, y, best), mask=in_rows)


@triton.jit
def load_scale(SCALE, n, in_rows, ACC: tl.constexpr):
    """The factors of the rows' gradients; SCALE = (pointer, stride 0 or 1)."""
    return tl.load(SCALE[0] + n * SCALE[1], mask=in_rows, other=0.0).to(ACC)
