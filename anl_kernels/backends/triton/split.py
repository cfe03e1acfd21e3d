"""Rows in parts: a few very long rows, split over programs, and the shard of rows that a rank has.

A row's loss takes three launches: partials of every part; sums of the dense terms of every part,
once all parts' partials give the row's lse; the head of every row. Parts merge by addition, and
backward.row_grad_kernel writes the gradient. ``PARTS.partials`` (N, splits, COLUMNS) holds the
columns of ``Kernels.shard_partials`` for every part, ``PARTS.best`` (N, splits) the place of its
maximum or None, ``SUMS`` (N, splits, 2 num_dense) its sums of phi and of the slope of phi. A row
whose parts are of one tensor has its label's logit with each of them. A shard is one part, or,
where its rows are few and long, several, which merge here before other ranks see them; from those
it gets the partials of whole rows, as one part. No atomics: the same bits every time.
"""

import triton
import triton.language as tl

from anl_kernels.backends.triton.forward import (
    first_of_equals,
    store_argmax,
    sweep_dense,
    sweep_others,
    tile_dense,
    tile_linear,
    tile_others,
)
from anl_kernels.backends.triton.rows import (
    Rows,
    any_of,
    finish_rows,
    labelled_rows,
    load_labels,
    load_others,
    load_target,
    normalise,
    or_zero,
    row_pointers,
    rows_of_program,
)
from anl_kernels.interface import NUM_PARTIALS

COLUMNS = tl.constexpr(NUM_PARTIALS)


@triton.jit
def split_partials_kernel(
    Z, Y, PARTS, SHAPE, IGNORE, SPLITS, PART, SHARD: tl.constexpr, TILE: tl.constexpr,
    LINEAR: tl.constexpr, ALL_ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program (rows, part): the partials of PART classes of each, a TILE or swept."""
    n, exist, slot, start = part_of_program(SHAPE, SPLITS, PART, BLOCK)
    rows = labelled_rows(row_pointers(Z, SHAPE, n, BLOCK), Y, SHAPE, IGNORE, n, exist, ALL_ROWS)
    z_y = load_target(Z, rows, SHARD, BLOCK.acc)
    stop = tl.where(any_of(rows.loaded), tl.minimum(start + PART, SHAPE.K), start)
    if TILE:
        z = load_others(Z, rows, 0, stop, BLOCK)
        m, mass = tile_others(z)
        total, count = tile_linear(z, m, BLOCK.acc)
        if PARTS.best is not None:
            best = first_of_equals(z, tl.arange(0, BLOCK.k)[None, :], m, stop - 1)
    else:
        m, mass, total, count, best = sweep_others(
            Z, rows, start, stop, LINEAR, PARTS.best is not None, BLOCK
        )
        m = tl.where(mass == 0, -float("inf"), m)
    store_partials(PARTS, slot, rows.exist, (m, mass, total, count, z_y))
    if PARTS.best is not None:
        tl.store(PARTS.best + slot, best, mask=rows.exist)


@triton.jit
def split_merge_kernel(PARTS, MERGED, SHAPE, SPLITS, BLOCK: tl.constexpr, BLOCK_S: tl.constexpr):
    """Program (rows): their partials, out of those of their parts."""
    n, exist = rows_of_program(SHAPE, BLOCK)
    merged = merge_partials(PARTS, n, exist, SPLITS, BLOCK_S)
    store_partials(MERGED, n, exist, merged)
    if PARTS.best is not None:
        best = best_of_parts(PARTS, merged[0], n, exist, SHAPE.K, SPLITS, BLOCK_S)
        tl.store(MERGED.best + n, best, mask=exist)


@triton.jit
def split_sums_kernel(
    Z, Y, PARTS, SUMS, SHAPE, IGNORE, GIVEN, SPLITS, PART, P, TILE: tl.constexpr,
    TERMS: tl.constexpr, ALL_ROWS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Program (rows, part): the dense sums of PART classes of each; GIVEN parts make PARTS."""
    n, exist, slot, start = part_of_program(SHAPE, SPLITS, PART, BLOCK)
    z_rows = row_pointers(Z, SHAPE, n, BLOCK)
    m_others, mass, _, _, z_y = merge_partials(PARTS, n, exist, GIVEN, BLOCK_S)
    softmax = normalise(m_others, mass, z_y)
    rows = labelled_rows(z_rows, Y, SHAPE, IGNORE, n, exist, ALL_ROWS)
    stop = tl.where(any_of(rows.loaded), tl.minimum(start + PART, SHAPE.K), start)
    if TILE:
        z = load_others(Z, rows, 0, stop, BLOCK)
        S, D = tile_dense(z, softmax, P, TERMS, BLOCK)
    else:
        S, D = sweep_dense(Z, rows, start, stop, softmax, P, TERMS, BLOCK)
    for i in tl.static_range(len(S)):
        tl.store(SUMS + (slot * len(S) + i) * 2, S[i], mask=rows.exist)
        tl.store(SUMS + (slot * len(S) + i) * 2 + 1, D[i], mask=rows.exist)


@triton.jit
def split_finish_kernel(
    Y, W, OUT, PARTS, SUMS, SHAPE, IGNORE, SPLITS, P,
    TERMS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Program (rows): merge their parts and run their heads. SHAPE.K is for the argmax alone."""
    n, exist = rows_of_program(SHAPE, BLOCK)
    valid, y = load_labels(Y, SHAPE, IGNORE, n, exist)
    rows = Rows(n, exist, None, valid, None, y)
    m_others, mass, total, count, z_y = merge_partials(PARTS, n, exist, SPLITS, BLOCK_S)
    S = ()
    D = ()
    WIDTH: tl.constexpr = 2 * TERMS.num_dense
    for i in tl.static_range(WIDTH):
        of_parts = load_parts(SUMS, n, exist, SPLITS, WIDTH, i, 0.0, BLOCK_S)
        if i % 2 == 0:
            S = S + (tl.sum(of_parts, 1),)
        else:
            D = D + (tl.sum(of_parts, 1),)
    softmax = normalise(m_others, mass, z_y)
    linear = (total, count, or_zero(m_others))
    finish_rows(OUT, W, rows, softmax, linear, S, D, P, TERMS, BLOCK.acc)
    if PARTS.best is not None:
        best = best_of_parts(PARTS, m_others, n, exist, SHAPE.K, SPLITS, BLOCK_S)
        store_argmax(OUT, rows, m_others, best, z_y)


@triton.jit
def part_of_program(SHAPE, SPLITS, PART, BLOCK: tl.constexpr):
    """(rows, which exist, their slots among all parts, first class of the part)."""
    pid = tl.program_id(0).to(tl.int64)
    n = pid // SPLITS * BLOCK.n + tl.arange(0, BLOCK.n)
    return n, n < SHAPE.N, n * SPLITS + pid % SPLITS, (pid % SPLITS * PART).to(tl.int32)


@triton.jit
def store_partials(PARTS, slot, mask, partials):
    """Write a row or part's COLUMNS."""
    for i in tl.static_range(COLUMNS):
        tl.store(PARTS.partials + slot * COLUMNS + i, partials[i], mask=mask)


@triton.jit
def load_parts(
    T, n, mask_n, SPLITS, width: tl.constexpr, i: tl.constexpr, other: tl.constexpr,
    BLOCK_S: tl.constexpr,
):  # fmt: skip
    """The (BLOCK.n, BLOCK_S) values number i of ``width`` that the parts of rows left."""
    s = tl.arange(0, BLOCK_S)[None, :]
    mask = mask_n[:, None] & (s < SPLITS)
    return tl.load(T + (n[:, None] * SPLITS + s) * width + i, mask=mask, other=other)


@triton.jit
def merge_partials(PARTS, n, mask_n, SPLITS, BLOCK_S: tl.constexpr):
    """The partials of rows from those of their parts."""
    T = PARTS.partials
    m = load_parts(T, n, mask_n, SPLITS, COLUMNS, 0, -float("inf"), BLOCK_S)
    mass = load_parts(T, n, mask_n, SPLITS, COLUMNS, 1, 0.0, BLOCK_S)
    total = load_parts(T, n, mask_n, SPLITS, COLUMNS, 2, 0.0, BLOCK_S)
    count = load_parts(T, n, mask_n, SPLITS, COLUMNS, 3, 0.0, BLOCK_S)
    z_y = tl.load(T + n * SPLITS * COLUMNS + 4, mask=mask_n, other=-float("inf"))
    m_others = tl.max(m, 1)
    below = tl.where(mass == 0, 0.0, m - m_others[:, None])  # 0 - 0 is of no class, -inf - -inf
    mass = tl.sum(mass * tl.exp(below), 1)
    return m_others, mass, tl.sum(total + count * below, 1), tl.sum(count, 1), z_y


@triton.jit
def best_of_parts(PARTS, m_others, n, mask_n, K, SPLITS, BLOCK_S: tl.constexpr):
    """The place of the rows' maxima m_others."""
    m = load_parts(PARTS.partials, n, mask_n, SPLITS, COLUMNS, 0, -float("inf"), BLOCK_S)
    index = load_parts(PARTS.best, n, mask_n, SPLITS, 1, 0, 0, BLOCK_S)
    return first_of_equals(m, index, m_others, K - 1)
