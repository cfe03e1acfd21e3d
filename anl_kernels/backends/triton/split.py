"""Few very long rows: each is split over many programs, whose partial sums merge by addition.

Four launches: statistics of every part; sums of the dense terms of every part, once all parts'
statistics give the row's lse; the head of every row; then backward.row_grad_kernel.
``PARTS`` (N, SPLITS, 4) holds max, mass, sum of z - z_0 and count of every part, ``BEST``
(N, SPLITS) its argmax or None, ``SUMS`` (N, SPLITS, 2 NUM_DENSE) its sums of phi and of the slope
of phi. No atomics: the same bits every time.
"""

import triton
import triton.language as tl

from anl_kernels.backends.triton.forward import store_argmax, sweep_dense, sweep_others
from anl_kernels.backends.triton.rows import (
    anchor,
    finish_rows,
    load_target,
    normalise,
    row_pointers,
)


@triton.jit
def split_statistics_kernel(
    Z, Y, PARTS, BEST, N, K, M, IGNORE, SPLITS, PART,
    LINEAR: tl.constexpr, ALL_ROWS: tl.constexpr, ACC: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Program (row, part): the statistics of PART classes of a row."""
    n, slot, rows, y, z_y, loaded, start, stop = part_of_row(
        Z, Y, N, K, M, IGNORE, SPLITS, PART, ALL_ROWS, ACC
    )
    z_0 = anchor(Z, rows, y, z_y, loaded, K, ACC)
    values = sweep_others(
        Z, rows, y, loaded, z_0, start, stop, LINEAR, BEST is not None, 1, BLOCK_K, ACC
    )
    for i in tl.static_range(4):
        tl.store(PARTS + slot * 4 + i, values[i], mask=n < N)
    if BEST is not None:
        tl.store(BEST + slot, values[4], mask=n < N)


@triton.jit
def split_sums_kernel(
    Z, Y, PARTS, SUMS, N, K, M, IGNORE, SPLITS, PART, P,
    TERMS: tl.constexpr, NUM_DENSE: tl.constexpr, ALL_ROWS: tl.constexpr, ACC: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Program (row, part): the dense sums of PART classes of a row."""
    n, slot, rows, y, z_y, loaded, start, stop = part_of_row(
        Z, Y, N, K, M, IGNORE, SPLITS, PART, ALL_ROWS, ACC
    )
    m_others, mass, _, _ = merge_statistics(PARTS, n, SPLITS, BLOCK_S)
    softmax = normalise(m_others, mass, z_y)
    S, D = sweep_dense(
        Z, rows, y, loaded, start, stop, softmax, P, TERMS, NUM_DENSE, 1, BLOCK_K, ACC
    )
    for i in tl.static_range(NUM_DENSE):
        tl.store(SUMS + (slot * NUM_DENSE + i) * 2, S[i], mask=n < N)
        tl.store(SUMS + (slot * NUM_DENSE + i) * 2 + 1, D[i], mask=n < N)


@triton.jit
def split_finish_kernel(
    Z, Y, W, OUT, PARTS, BEST, SUMS, N, K, M, IGNORE, SPLITS, P,
    TERMS: tl.constexpr, NUM_DENSE: tl.constexpr, ACC: tl.constexpr, BLOCK_S: tl.constexpr,
    ALL_ROWS: tl.constexpr,
):  # fmt: skip
    """Program (row): merge its parts and run its head."""
    n = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    in_rows = n < N
    rows = row_pointers(Z, n, M)
    y, counted, z_y = load_target(Z, Y, rows, n, in_rows, K, IGNORE, ACC)
    loaded = in_rows if ALL_ROWS else counted
    z_0 = anchor(Z, rows, y, z_y, loaded, K, ACC)
    m_others, mass, total, count = merge_statistics(PARTS, n, SPLITS, BLOCK_S)
    S = ()
    D = ()
    for i in tl.static_range(NUM_DENSE):
        S = S + (tl.sum(load_parts(SUMS, n, SPLITS, 2 * NUM_DENSE, 2 * i, 0.0, BLOCK_S), 1),)
        D = D + (tl.sum(load_parts(SUMS, n, SPLITS, 2 * NUM_DENSE, 2 * i + 1, 0.0, BLOCK_S), 1),)
    finish_rows(
        OUT, W, n, in_rows, counted, normalise(m_others, mass, z_y),
        (total, count, z_0), S, D, P, TERMS, ACC,
    )  # fmt: skip
    if OUT[5] is not None:
        m = load_parts(PARTS, n, SPLITS, 4, 0, -float("inf"), BLOCK_S)
        index = load_parts(BEST, n, SPLITS, 1, 0, 0, BLOCK_S)
        best = tl.min(tl.where(m == m_others[:, None], index, K - 1), 1)
        store_argmax(OUT[5], n, in_rows, m_others, best, z_y, y)


@triton.jit
def part_of_row(Z, Y, N, K, M, IGNORE, SPLITS, PART, ALL_ROWS: tl.constexpr, ACC: tl.constexpr):
    """What a program works on, each (1,) but the last two.

    Returns (row, slot among all parts, pointer, label, its logit, whether the row is read, first
    class, class past the last).
    """
    pid = tl.program_id(0).to(tl.int64)
    n = pid // SPLITS + tl.arange(0, 1)
    in_rows = n < N
    rows = row_pointers(Z, n, M)
    y, counted, z_y = load_target(Z, Y, rows, n, in_rows, K, IGNORE, ACC)
    loaded = in_rows if ALL_ROWS else counted
    start = (pid % SPLITS * PART).to(tl.int32)
    stop = tl.minimum(start + PART, K)
    stop = tl.where(tl.max(loaded.to(tl.int32), 0) > 0, stop, start)  # an ignored row has no part
    return n, pid + tl.arange(0, 1), rows, y, z_y, loaded, start, stop


@triton.jit
def load_parts(
    T, n, SPLITS, width: tl.constexpr, i: tl.constexpr, other: tl.constexpr, BLOCK_S: tl.constexpr
):
    """The (1, BLOCK_S) values number i of ``width`` that the parts of a row left."""
    s = tl.arange(0, BLOCK_S)[None, :]
    return tl.load(T + (n[:, None] * SPLITS + s) * width + i, mask=s < SPLITS, other=other)


@triton.jit
def merge_statistics(PARTS, n, SPLITS, BLOCK_S: tl.constexpr):
    """The row's (max, mass, sum of z - z_0, count) from those of its parts."""
    m = load_parts(PARTS, n, SPLITS, 4, 0, -float("inf"), BLOCK_S)
    mass = load_parts(PARTS, n, SPLITS, 4, 1, 0.0, BLOCK_S)
    total = load_parts(PARTS, n, SPLITS, 4, 2, 0.0, BLOCK_S)
    count = load_parts(PARTS, n, SPLITS, 4, 3, 0.0, BLOCK_S)
    m_others = tl.max(m, 1)
    mass = tl.sum(mass * tl.exp(m - m_others[:, None]), 1)
    return m_others, mass, tl.sum(total, 1), tl.sum(count, 1)
