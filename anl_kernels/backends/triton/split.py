"""Rows in parts: a few very long rows, split over programs, and the shard of rows that a rank has.

A row's loss takes three launches: partials of every part; sums of the dense terms of every part,
once all parts' partials give the row's lse; the head of every row. Parts merge by addition, and
backward.row_grad_kernel writes the gradient. ``PARTS`` (N, SPLITS, COLUMNS) holds the columns of
``Kernels.shard_partials`` for every part, ``BEST`` (N, SPLITS) the place of its maximum or None,
``SUMS`` (N, SPLITS, 2 NUM_DENSE) its sums of phi and of the slope of phi. A row whose parts are of
one tensor has its label's logit with each of them. A shard is one part, or, where its rows are few
and long, several, which merge here before other ranks see them; from those it gets the partials
of whole rows, as one part (``GIVEN``). No atomics: the same bits every time.
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
    anchor,
    class_of,
    finish_rows,
    load_labels,
    load_others,
    load_target,
    normalise,
    or_zero,
    row_pointers,
)
from anl_kernels.interface import NUM_PARTIALS

COLUMNS = tl.constexpr(NUM_PARTIALS)

# A part may be without its row's label, and then has no other guard against a masked anchor.
ANCHOR_SAMPLES = tl.constexpr(3)


@triton.jit
def split_partials_kernel(
    Z, Y, PARTS, BEST, N, K, M, IGNORE, SPLITS, PART,
    SHARD: tl.constexpr, TILE: tl.constexpr, LINEAR: tl.constexpr, ALL_ROWS: tl.constexpr,
    ACC: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Program (rows, part): the partials of PART classes of each, a TILE or swept."""
    n, in_rows, slot, start = part_of_program(N, SPLITS, PART, BLOCK_N)
    rows = row_pointers(Z, n, M)
    y, counted, z_y = load_target(Z, Y, rows, n, in_rows, K, IGNORE, SHARD, ACC)
    loaded = in_rows if ALL_ROWS else counted
    stop = end_of_part(start, PART, K, loaded)
    if TILE:
        k = tl.arange(0, BLOCK_K)
        z = load_others(Z, rows, k, y, loaded, stop, ACC)
        m, mass = tile_others(z)
        total, count = tile_linear(z, m, ACC)
        if BEST is not None:
            best = first_of_equals(z, k[None, :], m, stop - 1)
    else:
        z_0 = z_y
        if LINEAR:
            z_0 = anchor(Z, rows, y, z_y, loaded, start, stop, ANCHOR_SAMPLES, ACC)
        m, mass, total, count, best = sweep_others(
            Z, rows, y, loaded, z_0, start, stop, LINEAR, BEST is not None, BLOCK_N, BLOCK_K, ACC
        )
        if LINEAR:
            total = relative_to(m, z_0, total, count)
        m = tl.where(mass == 0, -float("inf"), m)
    store_partials(PARTS, slot, in_rows, (m, mass, total, count, z_y))
    if BEST is not None:
        tl.store(BEST + slot, best, mask=in_rows)


@triton.jit
def split_merge_kernel(
    PARTS, BEST, MERGED, MERGED_BEST, N, K, SPLITS, BLOCK_N: tl.constexpr, BLOCK_S: tl.constexpr
):
    """Program (rows): their partials, out of those of their parts."""
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_rows = n < N
    merged = merge_partials(PARTS, n, in_rows, SPLITS, BLOCK_S)
    store_partials(MERGED, n, in_rows, merged)
    if BEST is not None:
        best = best_of_parts(PARTS, BEST, merged[0], n, in_rows, K, SPLITS, BLOCK_S)
        tl.store(MERGED_BEST + n, best, mask=in_rows)


@triton.jit
def split_sums_kernel(
    Z, Y, PARTS, SUMS, N, K, M, IGNORE, GIVEN, SPLITS, PART, P,
    TILE: tl.constexpr, TERMS: tl.constexpr, NUM_DENSE: tl.constexpr, ALL_ROWS: tl.constexpr,
    ACC: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Program (rows, part): the dense sums of PART classes of each; GIVEN parts make PARTS."""
    n, in_rows, slot, start = part_of_program(N, SPLITS, PART, BLOCK_N)
    rows = row_pointers(Z, n, M)
    m_others, mass, _, _, z_y = merge_partials(PARTS, n, in_rows, GIVEN, BLOCK_S)
    softmax = normalise(m_others, mass, z_y)
    label, counted = load_labels(Y, n, in_rows, IGNORE)
    y = class_of(label, counted, K)
    loaded = in_rows if ALL_ROWS else counted
    stop = end_of_part(start, PART, K, loaded)
    if TILE:
        z = load_others(Z, rows, tl.arange(0, BLOCK_K), y, loaded, stop, ACC)
        S, D = tile_dense(z, softmax, P, TERMS, NUM_DENSE, BLOCK_N, BLOCK_K, ACC)
    else:
        S, D = sweep_dense(
            Z, rows, y, loaded, start, stop, softmax, P, TERMS, NUM_DENSE, BLOCK_N, BLOCK_K, ACC
        )
    for i in tl.static_range(NUM_DENSE):
        tl.store(SUMS + (slot * NUM_DENSE + i) * 2, S[i], mask=in_rows)
        tl.store(SUMS + (slot * NUM_DENSE + i) * 2 + 1, D[i], mask=in_rows)


@triton.jit
def split_finish_kernel(
    Y, W, OUT, PARTS, BEST, SUMS, N, K, IGNORE, SPLITS, P,
    TERMS: tl.constexpr, NUM_DENSE: tl.constexpr, ACC: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Program (rows): merge their parts and run their heads. K is for the argmax alone."""
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_rows = n < N
    label, counted = load_labels(Y, n, in_rows, IGNORE)
    m_others, mass, total, count, z_y = merge_partials(PARTS, n, in_rows, SPLITS, BLOCK_S)
    S = ()
    D = ()
    for i in tl.static_range(2 * NUM_DENSE):
        of_parts = load_parts(SUMS, n, in_rows, SPLITS, 2 * NUM_DENSE, i, 0.0, BLOCK_S)
        if i % 2 == 0:
            S = S + (tl.sum(of_parts, 1),)
        else:
            D = D + (tl.sum(of_parts, 1),)
    finish_rows(
        OUT, W, n, in_rows, counted, normalise(m_others, mass, z_y),
        (total, count, or_zero(m_others)), S, D, P, TERMS, ACC,
    )  # fmt: skip
    if OUT[5] is not None:
        best = best_of_parts(PARTS, BEST, m_others, n, in_rows, K, SPLITS, BLOCK_S)
        store_argmax(OUT[5], n, in_rows, m_others, best, z_y, class_of(label, counted, K))


@triton.jit
def part_of_program(N, SPLITS, PART, BLOCK_N: tl.constexpr):
    """(rows, which exist, their slots among all parts, first class of the part)."""
    pid = tl.program_id(0).to(tl.int64)
    n = pid // SPLITS * BLOCK_N + tl.arange(0, BLOCK_N)
    return n, n < N, n * SPLITS + pid % SPLITS, (pid % SPLITS * PART).to(tl.int32)


@triton.jit
def end_of_part(start, PART, K, loaded):
    """The class past a part's last; its first where no row is read."""
    return tl.where(tl.max(loaded.to(tl.int32), 0) > 0, tl.minimum(start + PART, K), start)


@triton.jit
def relative_to(m, z_0, total, count):
    """The sum of z - m over the others out of that of z - z_0; m is their maximum.

    Where classes are masked by the lowest number there is, and one is the anchor, the rest
    overflows: by that much the sum of z - m is below 0.
    """
    moved = tl.where(count == 0, total, total + count * (z_0 - m))
    return tl.where(total == float("inf"), -float("inf"), moved)


@triton.jit
def store_partials(T, slot, mask, partials):
    """Write a row or part's COLUMNS."""
    for i in tl.static_range(COLUMNS):
        tl.store(T + slot * COLUMNS + i, partials[i], mask=mask)


@triton.jit
def load_parts(
    T, n, mask_n, SPLITS, width: tl.constexpr, i: tl.constexpr, other: tl.constexpr,
    BLOCK_S: tl.constexpr,
):  # fmt: skip
    """The (BLOCK_N, BLOCK_S) values number i of ``width`` that the parts of rows left."""
    s = tl.arange(0, BLOCK_S)[None, :]
    mask = mask_n[:, None] & (s < SPLITS)
    return tl.load(T + (n[:, None] * SPLITS + s) * width + i, mask=mask, other=other)


@triton.jit
def merge_partials(PARTS, n, mask_n, SPLITS, BLOCK_S: tl.constexpr):
    """The partials of rows from those of their parts."""
    m = load_parts(PARTS, n, mask_n, SPLITS, COLUMNS, 0, -float("inf"), BLOCK_S)
    mass = load_parts(PARTS, n, mask_n, SPLITS, COLUMNS, 1, 0.0, BLOCK_S)
    total = load_parts(PARTS, n, mask_n, SPLITS, COLUMNS, 2, 0.0, BLOCK_S)
    count = load_parts(PARTS, n, mask_n, SPLITS, COLUMNS, 3, 0.0, BLOCK_S)
    z_y = tl.load(PARTS + n * SPLITS * COLUMNS + 4, mask=mask_n, other=-float("inf"))
    m_others = tl.max(m, 1)
    below = tl.where(mass == 0, 0.0, m - m_others[:, None])  # 0 - 0 is of no class, -inf - -inf
    mass = tl.sum(mass * tl.exp(below), 1)
    return m_others, mass, tl.sum(total + count * below, 1), tl.sum(count, 1), z_y


@triton.jit
def best_of_parts(PARTS, BEST, m_others, n, mask_n, K, SPLITS, BLOCK_S: tl.constexpr):
    """The place of the rows' maxima m_others."""
    m = load_parts(PARTS, n, mask_n, SPLITS, COLUMNS, 0, -float("inf"), BLOCK_S)
    index = load_parts(BEST, n, mask_n, SPLITS, 1, 0, 0, BLOCK_S)
    return first_of_equals(m, index, m_others, K - 1)
