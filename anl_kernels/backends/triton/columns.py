"""Column sums of clamped probabilities, and the gradient of a function of them.

Sums are deterministic: every program has some columns of a group of rows, and writes its partial
sums to a place of its own. ``VALID`` has a byte for each row, whether it counts, or is None if all
do.
"""

import triton
import triton.language as tl

from anl_kernels.backends.triton.forward import sweep_others, tile_others
from anl_kernels.backends.triton.lanes import full_lanes, sum_by_lane
from anl_kernels.backends.triton.numerics import exp, scalar
from anl_kernels.backends.triton.rows import (
    any_of,
    full_tile,
    load_classes,
    load_tile,
    or_zero,
    row_pointers,
    rows_of_program,
    store_tile,
    unlabelled_rows,
)

NUM_COLUMNS = tl.constexpr(2)  # of the parts of the lse: m, log_s


@triton.jit
def lse_parts_tile_kernel(Z, VALID, LSE_PARTS, SHAPE, BLOCK: tl.constexpr):
    n, exist, valid = rows_that_count(VALID, SHAPE, BLOCK)
    rows = unlabelled_rows(Z, SHAPE, n, exist, valid, BLOCK)
    m, mass = tile_others(load_classes(Z, rows, 0, SHAPE.K, BLOCK))
    store_lse_parts(LSE_PARTS, rows, or_zero(m), mass)


@triton.jit
def lse_parts_sweep_kernel(Z, VALID, LSE_PARTS, SHAPE, BLOCK: tl.constexpr):
    n, exist, valid = rows_that_count(VALID, SHAPE, BLOCK)
    stop = tl.where(any_of(valid), SHAPE.K, 0)
    rows = unlabelled_rows(Z, SHAPE, n, exist, valid, BLOCK)
    m, mass, _, _, _ = sweep_others(Z, rows, 0, stop, False, False, BLOCK)
    store_lse_parts(LSE_PARTS, rows, m, mass)


@triton.jit
def column_sums_kernel(
    Z, VALID, LSE_PARTS, PARTIAL, SHAPE, GROUP_ROWS, BOUNDS, BLOCK: tl.constexpr
):
    """PARTIAL (groups, K): sums over ``GROUP_ROWS`` rows each, a multiple of BLOCK.n."""
    group = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * BLOCK.k
    low, high = scalar(BOUNDS, 0, BLOCK.acc), scalar(BOUNDS, 1, BLOCK.acc)
    # A sum for each lane: no reduction, and no long chain of roundings.
    sums = full_tile(0, BLOCK, BLOCK.acc)
    for i in range(0, GROUP_ROWS, BLOCK.n):
        n = group * GROUP_ROWS + i + tl.arange(0, BLOCK.n)
        rows = unlabelled_rows(Z, SHAPE, n, n < SHAPE.N, load_valid(VALID, n, n < SHAPE.N), BLOCK)
        z = load_classes(Z, rows, first, SHAPE.K, BLOCK)
        p = clamped(probabilities(LSE_PARTS, rows, z), low, high)
        sums += tl.where(rows.valid[:, None], p, 0.0)
    k = first + tl.arange(0, BLOCK.k)
    tl.store(PARTIAL + group * SHAPE.K + k, tl.sum(sums, 0), mask=k < SHAPE.K)


@triton.jit
def column_grad_tile_kernel(
    Z, VALID, LSE_PARTS, SLOPES, SCALE, GRAD, SHAPE, BOUNDS,
    ACCUMULATE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n, exist, valid = rows_that_count(VALID, SHAPE, BLOCK)
    rows = unlabelled_rows(Z, SHAPE, n, exist, valid, BLOCK)
    z = load_classes(Z, rows, 0, SHAPE.K, BLOCK)
    p = probabilities(LSE_PARTS, rows, z)
    u = slopes_at(SLOPES, SHAPE, 0, p, BOUNDS, BLOCK)
    slope = tl.load(SCALE).to(BLOCK.acc) * p * (u - tl.sum(p * u, 1)[:, None])
    store_gradient(GRAD, SHAPE, rows, 0, slope, ACCUMULATE, BLOCK)


@triton.jit
def column_grad_sweep_kernel(
    Z, VALID, LSE_PARTS, SLOPES, SCALE, GRAD, SHAPE, BOUNDS,
    ACCUMULATE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n, exist, valid = rows_that_count(VALID, SHAPE, BLOCK)
    rows = unlabelled_rows(Z, SHAPE, n, exist, valid, BLOCK)
    dot = full_lanes(0, BLOCK, BLOCK.acc)
    for first in range(0, SHAPE.K, BLOCK.k):
        p = probabilities(LSE_PARTS, rows, load_classes(Z, rows, first, SHAPE.K, BLOCK))
        u = slopes_at(SLOPES, SHAPE, first, p, BOUNDS, BLOCK)
        dot += sum_by_lane(p * u, BLOCK)
    dot_row = tl.sum(dot, 1)[:, None]
    scale = tl.load(SCALE).to(BLOCK.acc)
    for first in range(0, SHAPE.K, BLOCK.k):
        p = probabilities(LSE_PARTS, rows, load_classes(Z, rows, first, SHAPE.K, BLOCK))
        slope = scale * p * (slopes_at(SLOPES, SHAPE, first, p, BOUNDS, BLOCK) - dot_row)
        store_gradient(GRAD, SHAPE, rows, first, slope, ACCUMULATE, BLOCK)


@triton.jit
def rows_that_count(VALID, SHAPE, BLOCK: tl.constexpr):
    """(the rows of a program, which exist, which of them count)."""
    n, exist = rows_of_program(SHAPE, BLOCK)
    return n, exist, load_valid(VALID, n, exist)


@triton.jit
def load_valid(VALID, n, exist):
    """Which rows count."""
    if VALID is None:
        return exist
    return exist & (tl.load(VALID + n, mask=exist, other=0) != 0)


@triton.jit
def store_lse_parts(LSE_PARTS, rows, m, mass):
    row = LSE_PARTS + rows.n * NUM_COLUMNS
    tl.store(row, tl.where(rows.valid, m, 0.0), mask=rows.exist)
    tl.store(row + 1, tl.where(rows.valid, tl.log(mass), 0.0), mask=rows.exist)


@triton.jit
def probabilities(LSE_PARTS, rows, z):
    """p of a tile of logits, 0 where they are -inf: outside the row, or in one that is not read."""
    row = LSE_PARTS + rows.n * NUM_COLUMNS
    m = tl.load(row, mask=rows.valid, other=0.0)
    log_s = tl.load(row + 1, mask=rows.valid, other=0.0)
    return exp((z - m[:, None]) - log_s[:, None])


@triton.jit
def clamped(p, low, high):
    """Compared so that a NaN stays one."""
    return tl.where(p < low, low, tl.where(p > high, high, p))


@triton.jit
def slopes_at(SLOPES, SHAPE, first, p, BOUNDS, BLOCK: tl.constexpr):
    """The slope of each class where it reaches p, through the clamp; 0 outside the row."""
    low, high = scalar(BOUNDS, 0, BLOCK.acc), scalar(BOUNDS, 1, BLOCK.acc)
    k = first + tl.arange(0, BLOCK.k)
    slopes = tl.load(SLOPES + k, mask=k < SHAPE.K, other=0.0)[None, :]
    return tl.where((p < low) | (p > high), 0.0, slopes)


@triton.jit
def store_gradient(GRAD, SHAPE, rows, first, slope, ACCUMULATE: tl.constexpr, BLOCK: tl.constexpr):
    if ACCUMULATE:
        pointers = row_pointers(GRAD, SHAPE, rows.n, BLOCK)
        slope += load_tile(GRAD, SHAPE, pointers, rows.valid, first, BLOCK)
        store_tile(GRAD, SHAPE, rows.n, rows.valid, first, slope, BLOCK)
    else:
        slope = tl.where(rows.valid[:, None], slope, 0.0)
        store_tile(GRAD, SHAPE, rows.n, rows.exist, first, slope, BLOCK)
