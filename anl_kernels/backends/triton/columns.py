"""Column sums of clamped probabilities, and the gradient of a function of them.

Sums are deterministic: every program has some columns of a group of rows, and writes its partial
sums to a place of its own.
"""

import triton
import triton.language as tl

from anl_kernels.backends.triton.forward import sweep_others, tile_others
from anl_kernels.backends.triton.numerics import scalar
from anl_kernels.backends.triton.rows import load_others, or_zero, row_pointers, store_tile
from anl_kernels.backends.triton.softmax import load_tile

NUM_COLUMNS = tl.constexpr(2)  # of the parts of the lse: m, log_s


@triton.jit
def lse_parts_tile_kernel(
    Z, COUNTED, LSE_PARTS, N, K, M, ACC: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr
):
    n, in_rows, counted, nobody = counted_rows(COUNTED, N, BLOCK_N)
    z = load_others(Z, row_pointers(Z, n, M), tl.arange(0, BLOCK_K), nobody, counted, K, ACC)
    m, mass = tile_others(z)
    store_lse_parts(LSE_PARTS, n, in_rows, counted, or_zero(m), mass)


@triton.jit
def lse_parts_sweep_kernel(
    Z, COUNTED, LSE_PARTS, N, K, M, ACC: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr
):
    n, in_rows, counted, nobody = counted_rows(COUNTED, N, BLOCK_N)
    stop = tl.where(tl.max(counted.to(tl.int32), 0) > 0, K, 0)  # others are not read
    m, mass, _, _, _ = sweep_others(
        Z, row_pointers(Z, n, M), nobody, counted, n.to(ACC), 0, stop, False, False,
        BLOCK_N, BLOCK_K, ACC,
    )  # fmt: skip
    store_lse_parts(LSE_PARTS, n, in_rows, counted, m, mass)


@triton.jit
def column_sums_kernel(
    Z, COUNTED, LSE_PARTS, PARTIAL, N, K, M, GROUP_ROWS, BOUNDS,
    ACC: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """PARTIAL (groups, K): sums over ``GROUP_ROWS`` rows each, a multiple of BLOCK_N."""
    group = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    low, high = scalar(BOUNDS, 0, ACC), scalar(BOUNDS, 1, ACC)
    # A sum for each lane: no reduction, and no long chain of roundings.
    sums = tl.zeros((BLOCK_N, BLOCK_K), ACC)
    nobody = tl.full((BLOCK_N,), -1, tl.int32)
    for first in range(0, GROUP_ROWS, BLOCK_N):
        n = group * GROUP_ROWS + first + tl.arange(0, BLOCK_N)
        counted = load_counted(COUNTED, n, n < N)
        z = load_others(Z, row_pointers(Z, n, M), k, nobody, counted, K, ACC)
        p = clamped(probabilities(LSE_PARTS, n, counted, z), low, high)
        sums += tl.where(counted[:, None], p, 0.0)
    tl.store(PARTIAL + group * K + k, tl.sum(sums, 0), mask=k < K)


@triton.jit
def column_grad_tile_kernel(
    Z, COUNTED, LSE_PARTS, SLOPES, SCALE, GRAD, N, K, M, BOUNDS, ACCUMULATE: tl.constexpr,
    ACC: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    n, in_rows, counted, nobody = counted_rows(COUNTED, N, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    z = load_others(Z, row_pointers(Z, n, M), k, nobody, counted, K, ACC)
    p = probabilities(LSE_PARTS, n, counted, z)
    u = slopes_at(SLOPES, k, K, p, BOUNDS, ACC)
    slope = tl.load(SCALE).to(ACC) * p * (u - tl.sum(p * u, 1)[:, None])
    store_gradient(GRAD, n, M, k, in_rows, counted, K, slope, ACCUMULATE, ACC)


@triton.jit
def column_grad_sweep_kernel(
    Z, COUNTED, LSE_PARTS, SLOPES, SCALE, GRAD, N, K, M, BOUNDS, ACCUMULATE: tl.constexpr,
    ACC: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    n, in_rows, counted, nobody = counted_rows(COUNTED, N, BLOCK_N)
    rows = row_pointers(Z, n, M)
    dot = tl.zeros((BLOCK_N, BLOCK_K), ACC)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        z = load_others(Z, rows, k, nobody, counted, K, ACC)
        p = probabilities(LSE_PARTS, n, counted, z)
        dot += p * slopes_at(SLOPES, k, K, p, BOUNDS, ACC)
    dot_row = tl.sum(dot, 1)[:, None]
    scale = tl.load(SCALE).to(ACC)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        z = load_others(Z, rows, k, nobody, counted, K, ACC)
        p = probabilities(LSE_PARTS, n, counted, z)
        slope = scale * p * (slopes_at(SLOPES, k, K, p, BOUNDS, ACC) - dot_row)
        store_gradient(GRAD, n, M, k, in_rows, counted, K, slope, ACCUMULATE, ACC)


@triton.jit
def counted_rows(COUNTED, N, BLOCK_N: tl.constexpr):
    """(rows, which exist, which of them count, labels that are nobody's) of a program."""
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    nobody = tl.full((BLOCK_N,), -1, tl.int32)
    return n, n < N, load_counted(COUNTED, n, n < N), nobody


@triton.jit
def load_counted(COUNTED, n, in_rows):
    """Which rows count; COUNTED holds bytes, or is None if all do."""
    if COUNTED is None:
        return in_rows
    return in_rows & (tl.load(COUNTED + n, mask=in_rows, other=0) != 0)


@triton.jit
def store_lse_parts(LSE_PARTS, n, in_rows, counted, m, mass):
    row = LSE_PARTS + n * NUM_COLUMNS
    tl.store(row, tl.where(counted, m, 0.0), mask=in_rows)
    tl.store(row + 1, tl.where(counted, tl.log(mass), 0.0), mask=in_rows)


@triton.jit
def probabilities(LSE_PARTS, n, counted, z):
    """p of a tile of logits, 0 where they are -inf: outside the row, or in one that is not read."""
    row = LSE_PARTS + n * NUM_COLUMNS
    m = tl.load(row, mask=counted, other=0.0)
    log_s = tl.load(row + 1, mask=counted, other=0.0)
    return tl.exp((z - m[:, None]) - log_s[:, None])


@triton.jit
def clamped(p, low, high):
    """Compared so that a NaN stays one."""
    return tl.where(p < low, low, tl.where(p > high, high, p))


@triton.jit
def slopes_at(SLOPES, k, K, p, BOUNDS, ACC: tl.constexpr):
    """The slope of each class where it reaches p, through the clamp; 0 outside the row."""
    low, high = scalar(BOUNDS, 0, ACC), scalar(BOUNDS, 1, ACC)
    slopes = tl.load(SLOPES + k, mask=k < K, other=0.0)[None, :]
    return tl.where((p < low) | (p > high), 0.0, slopes)


@triton.jit
def store_gradient(
    GRAD, n, M, k, in_rows, counted, K, slope, ACCUMULATE: tl.constexpr, ACC: tl.constexpr
):
    if ACCUMULATE:
        slope += load_tile(GRAD, row_pointers(GRAD, n, M), k, counted, K, ACC)
        store_tile(GRAD, n, M, k, counted, K, slope)
    else:
        store_tile(GRAD, n, M, k, in_rows, K, tl.where(counted[:, None], slope, 0.0))
