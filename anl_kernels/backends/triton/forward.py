"""Loss of every row and, in the one-pass form, its gradient: one read of the logits from memory.

``row_tile_kernel`` holds whole rows in registers, several of them in a program when they are
short; ``row_sweep_kernel`` walks a long row in blocks, and counts on the cache for the sweeps
after the first. Both work on any strides: with the class dimension first (segmentation), a tile's
rows are the contiguous direction.
"""

import triton
import triton.language as tl

from anl_kernels.backends.triton.lanes import (
    full_lanes,
    max_by_lane,
    min_by_lane,
    spread,
    sum_by_lane,
)
from anl_kernels.backends.triton.numerics import exp
from anl_kernels.backends.triton.rows import (
    all_others,
    any_of,
    dense_tiles,
    finish_rows,
    gradient_tile,
    is_target,
    labelled_rows,
    load_block,
    load_others,
    load_scale,
    load_target,
    normalise,
    or_zero,
    row_pointers,
    rows_of_program,
    scaled,
    store_block,
    store_tile,
    sum_rows,
)


@triton.jit
def row_tile_kernel(
    Z, Y, SCALE, W, OUT, GRAD, PROBS, SHAPE, IGNORE, P,
    TERMS: tl.constexpr, ALL_ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n, exist = rows_of_program(SHAPE, BLOCK)
    rows = labelled_rows(row_pointers(Z, SHAPE, n, BLOCK), Y, SHAPE, IGNORE, n, exist, ALL_ROWS)
    z_y = load_target(Z, rows, False, BLOCK.acc)
    z = load_others(Z, rows, 0, SHAPE.K, BLOCK)

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
        best = first_of_equals(z, tl.arange(0, BLOCK.k)[None, :], m_others, SHAPE.K - 1)
        store_argmax(OUT, rows, m_others, best, z_y)
    if (GRAD.data is not None) or (PROBS.data is not None):
        slopes = scaled(slopes, rows, load_scale(SCALE, n, exist, BLOCK.acc))
        store_outputs(
            GRAD, PROBS, SHAPE, rows, z, 0, False, softmax, slopes, P, TERMS, ALL_ROWS, BLOCK
        )


@triton.jit
def row_sweep_kernel(
    Z, Y, SCALE, W, OUT, GRAD, PROBS, SHAPE, IGNORE, P,
    TERMS: tl.constexpr, ALL_ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n, exist = rows_of_program(SHAPE, BLOCK)
    rows = labelled_rows(row_pointers(Z, SHAPE, n, BLOCK), Y, SHAPE, IGNORE, n, exist, ALL_ROWS)
    z_y = load_target(Z, rows, False, BLOCK.acc)
    stop = tl.where(any_of(rows.loaded), SHAPE.K, 0)  # ignored rows are not read

    m_others, mass, total, count, best = sweep_others(
        Z, rows, 0, stop, TERMS.linear, OUT.argmax is not None, BLOCK
    )
    softmax = normalise(m_others, mass, z_y)
    S, D = sweep_dense(Z, rows, 0, stop, softmax, P, TERMS, BLOCK)
    linear = (total, count, tl.where(count == 0, 0.0, m_others))
    slopes = finish_rows(OUT, W, rows, softmax, linear, S, D, P, TERMS, BLOCK.acc)
    if OUT.argmax is not None:
        store_argmax(OUT, rows, m_others, best, z_y)
    if (GRAD.data is not None) or (PROBS.data is not None):
        slopes = scaled(slopes, rows, load_scale(SCALE, n, exist, BLOCK.acc))
        for i in range(0, SHAPE.K, BLOCK.k):
            first = i
            if TERMS.num_dense == 0:
                first = from_the_end(i, 0, SHAPE.K, BLOCK)
            z = load_block(Z, rows, first, stop, BLOCK)
            plain = all_others(rows, first, stop, BLOCK)
            store_outputs(
                GRAD,
                PROBS,
                SHAPE,
                rows,
                z,
                first,
                plain,
                softmax,
                slopes,
                P,
                TERMS,
                ALL_ROWS,
                BLOCK,
            )


@triton.jit
def store_outputs(
    GRAD, PROBS, SHAPE, rows, z, first, plain, softmax, slopes, P,
    TERMS: tl.constexpr, ALL_ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write what is asked for of a tile, which is ``plain`` if it has neither target nor end."""
    grad, p = gradient_tile(z, softmax.m, softmax.log_s, slopes, P, TERMS, BLOCK)
    if ALL_ROWS:  # those that are ignored may hold a NaN
        grad = tl.where(rows.valid[:, None], grad, 0.0)
    if GRAD.data is not None:
        store_values(GRAD, SHAPE, rows, first, grad, slopes.gy, plain, BLOCK)
    if PROBS.data is not None:
        store_values(PROBS, SHAPE, rows, first, p, softmax.p_y, plain, BLOCK)


@triton.jit
def store_values(T, SHAPE, rows, first, values, own, plain, BLOCK: tl.constexpr):
    """Write a tile of the others' values, and each row's own at its target."""
    if plain:
        store_block(T, SHAPE, rows.n, first, values, BLOCK)
    else:
        values = tl.where(is_target(rows, first, BLOCK), own[:, None], values)
        store_tile(T, SHAPE, rows.n, rows.exist, first, values, BLOCK)


@triton.jit
def tile_others(z):
    """(max, sum of exp(z - max)) of the others in a tile of whole rows."""
    m_others = tl.max(z, 1)
    return m_others, tl.sum(exp(z - or_zero(m_others)[:, None]), 1)


@triton.jit
def tile_linear(z, m_others, ACC: tl.constexpr):
    """(sum of z - max, count) of the others in a tile of whole rows."""
    there = z > -float("inf")
    total = tl.sum(tl.where(there, z - or_zero(m_others)[:, None], 0.0), 1)
    return total, tl.sum(there.to(ACC), 1)


@triton.jit
def tile_dense(z, softmax, P, TERMS: tl.constexpr, BLOCK: tl.constexpr):
    """Sums over the others in a tile of whole rows of every dense term's phi and its slope."""
    values, slopes = dense_tiles(z, softmax, P, TERMS, BLOCK)
    return sum_rows(values), sum_rows(slopes)


@triton.jit
def from_the_end(i, start, stop, BLOCK: tl.constexpr):
    """The first class of the block that is as far from the last of [start, stop) as i from start.

    A sweep that turns round finds in the cache what the one before it read last.
    """
    return start + (stop - 1 - start) // BLOCK.k * BLOCK.k - (i - start)


@triton.jit
def sweep_others(
    Z, rows, start, stop, LINEAR: tl.constexpr, ARGMAX: tl.constexpr, BLOCK: tl.constexpr
):
    """Partials of the others in [start, stop), each (BLOCK.n,).

    Returns (max, sum of exp(z - max), sum of z - max, count, index of the max). Every lane keeps
    its own running maximum, so that a block costs one exp an element, one a lane and no reduction
    between threads; lanes merge at the end. They start at the lowest finite number, where -inf may
    arrive without making inf - inf.
    """
    ACC: tl.constexpr = BLOCK.acc
    lowest: tl.constexpr = -1.7976931348623157e308 if ACC == tl.float64 else -3.4028234663852886e38
    m = full_lanes(lowest, BLOCK, ACC)
    mass = full_lanes(0, BLOCK, ACC)
    total = full_lanes(0, BLOCK, ACC)
    count = full_lanes(0, BLOCK, ACC)
    best = full_lanes(0, BLOCK, tl.int32)
    for first in range(start, stop, BLOCK.k):
        z = load_block(Z, rows, first, stop, BLOCK)
        above = tl.maximum(m, max_by_lane(z, BLOCK))
        d = z - spread(above, BLOCK)
        if BLOCK.lanes == BLOCK.k:  # one exponential for two numbers, of which the larger's is 1
            e = exp((m - above) + d)
            mass = tl.where(z > m, mass * e + 1, mass + e)
        else:
            mass = mass * exp(m - above) + sum_by_lane(exp(d), BLOCK)
        if LINEAR:
            total = moved(total, count, m - above)
            if all_others(rows, first, stop, BLOCK):
                total += sum_by_lane(d, BLOCK)
                count += BLOCK.k // BLOCK.lanes
            else:
                there = z > -float("inf")
                total += sum_by_lane(tl.where(there, d, 0.0), BLOCK)
                count += sum_by_lane(there.to(ACC), BLOCK)
        if ARGMAX:
            index = (first + tl.arange(0, BLOCK.k))[None, :]
            if BLOCK.lanes < BLOCK.k:
                index = tl.where(z == spread(above, BLOCK), index, stop)
            best = tl.where(above > m, min_by_lane(index, BLOCK), best)
        m = above
    m_others = tl.max(m, 1)
    below = m - m_others[:, None]
    mass = tl.sum(mass * exp(below), 1)
    index = tl.zeros(rows.n.shape, tl.int32)
    if ARGMAX:
        index = first_of_equals(m, best, m_others, stop - 1)
    total, count = tl.sum(moved(total, count, below), 1), tl.sum(count, 1)
    if LINEAR:
        if any_of((total > -float("inf")) == 0):
            total, count = sweep_linear(Z, rows, m_others, start, stop, BLOCK)
    return m_others, mass, total, count, index


@triton.jit
def sweep_linear(Z, rows, m_others, start, stop, BLOCK: tl.constexpr):
    """(sum of z - max, count) of the others in [start, stop), where classes may be missing.

    The sweep for all sums counts them only in blocks that have masks anyway, and in any other adds
    their -inf; to look at every class would cost it an eighth more for rows that have them all.
    """
    total = full_lanes(0, BLOCK, BLOCK.acc)
    count = full_lanes(0, BLOCK, BLOCK.acc)
    for i in range(start, stop, BLOCK.k):
        z = load_block(Z, rows, from_the_end(i, start, stop, BLOCK), stop, BLOCK)
        there = z > -float("inf")
        total += sum_by_lane(tl.where(there, z - m_others[:, None], 0.0), BLOCK)
        count += sum_by_lane(there.to(BLOCK.acc), BLOCK)
    return tl.sum(total, 1), tl.sum(count, 1)


@triton.jit
def moved(total, count, by):
    """The sum of z - m + by out of that of z - m; what has no classes has nothing to move."""
    return tl.where(count == 0, total, total + count * by)


@triton.jit
def sweep_dense(Z, rows, start, stop, softmax, P, TERMS: tl.constexpr, BLOCK: tl.constexpr):
    """Sums over the others in [start, stop) of every dense term's phi and its slope."""
    S = zero_lanes(TERMS.num_dense, BLOCK)
    D = zero_lanes(TERMS.num_dense, BLOCK)
    if TERMS.num_dense > 0:
        for i in range(start, stop, BLOCK.k):
            z = load_block(Z, rows, from_the_end(i, start, stop, BLOCK), stop, BLOCK)
            values, slopes = dense_tiles(z, softmax, P, TERMS, BLOCK)
            S, D = add_by_lane(S, values, BLOCK), add_by_lane(D, slopes, BLOCK)
    return sum_rows(S), sum_rows(D)


@triton.jit
def zero_lanes(count: tl.constexpr, BLOCK: tl.constexpr):
    """A tuple of ``count`` sums."""
    sums = ()
    for _ in tl.static_range(count):
        sums = sums + (full_lanes(0, BLOCK, BLOCK.acc),)
    return sums


@triton.jit
def add_by_lane(sums, tiles, BLOCK: tl.constexpr):
    """A tuple of sums plus one of tiles."""
    added = ()
    for i in tl.static_range(len(sums)):
        added = added + (sums[i] + sum_by_lane(tiles[i], BLOCK),)
    return added


@triton.jit
def first_of_equals(values, index, m, last):
    """The lowest ``index`` of a row's maximum m among its values; ``last`` where m is NaN."""
    return tl.min(tl.where(values == m[:, None], index, last), 1)


@triton.jit
def store_argmax(OUT, rows, m_others, best, z_y):
    """The class of the largest logit: the lowest such index."""
    ahead = (z_y > m_others) | ((z_y == m_others) & (rows.y < best))
    tl.store(OUT.argmax + rows.n, tl.where(ahead, rows.y, best), mask=rows.exist)
