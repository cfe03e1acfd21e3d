"""Softmax and its backward, on the row kernels' layouts."""

import triton
import triton.language as tl

from anl_kernels.backends.triton.forward import sweep_others
from anl_kernels.backends.triton.rows import load_others, row_pointers, store_tile


@triton.jit
def softmax_tile_kernel(
    Z, PROBS, N, K, M, ACC: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr
):
    n, in_rows, rows, nobody = rows_of_program(Z, N, M, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    z = load_others(Z, rows, k, nobody, in_rows, K, ACC)
    e = tl.exp(z - tl.max(z, 1)[:, None])
    store_tile(PROBS, n, M, k, in_rows, K, e / tl.sum(e, 1)[:, None])


@triton.jit
def softmax_sweep_kernel(
    Z, PROBS, N, K, M, ACC: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr
):
    n, in_rows, rows, nobody = rows_of_program(Z, N, M, BLOCK_N)
    m, mass, _, _, _ = sweep_others(
        Z, rows, nobody, in_rows, n.to(ACC), 0, K, False, False, BLOCK_N, BLOCK_K, ACC
    )
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        z = load_others(Z, rows, k, nobody, in_rows, K, ACC)
        store_tile(PROBS, n, M, k, in_rows, K, tl.exp(z - m[:, None]) / mass[:, None])


@triton.jit
def softmax_backward_tile_kernel(
    PROBS, UP, GRAD, N, K, M, ACC: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr
):
    n, in_rows, rows, _ = rows_of_program(PROBS, N, M, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    p = load_tile(PROBS, rows, k, in_rows, K, ACC)
    up = load_tile(UP, row_pointers(UP, n, M), k, in_rows, K, ACC)
    store_tile(GRAD, n, M, k, in_rows, K, p * (up - tl.sum(p * up, 1)[:, None]))


@triton.jit
def softmax_backward_sweep_kernel(
    PROBS, UP, GRAD, N, K, M, ACC: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr
):
    n, in_rows, rows, _ = rows_of_program(PROBS, N, M, BLOCK_N)
    up_rows = row_pointers(UP, n, M)
    dot = tl.zeros((BLOCK_N, BLOCK_K), ACC)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        p = load_tile(PROBS, rows, k, in_rows, K, ACC)
        dot += p * load_tile(UP, up_rows, k, in_rows, K, ACC)
    dot_row = tl.sum(dot, 1)[:, None]
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        p = load_tile(PROBS, rows, k, in_rows, K, ACC)
        up = load_tile(UP, up_rows, k, in_rows, K, ACC)
        store_tile(GRAD, n, M, k, in_rows, K, p * (up - dot_row))


@triton.jit
def rows_of_program(T, N, M, BLOCK_N: tl.constexpr):
    """(rows, which exist, their pointers, labels that are nobody's)."""
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    return n, n < N, row_pointers(T, n, M), tl.full((BLOCK_N,), -1, tl.int32)


@triton.jit
def load_tile(T, rows, k, in_rows, K, ACC: tl.constexpr):
    """Tile (BLOCK_N, BLOCK_K) with zeros outside."""
    mask = in_rows[:, None] & (k < K)[None, :]
    pointers = rows[:, None] + k.to(tl.int64)[None, :] * T[2]
    return tl.load(pointers, mask=mask, other=0.0).to(ACC)
