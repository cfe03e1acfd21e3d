"""Softmax and its backward, on the row kernels' layouts."""

import triton
import triton.language as tl

from anl_kernels.backends.triton.forward import sweep_others
from anl_kernels.backends.triton.rows import (
    full_tile,
    load_others,
    load_tile,
    row_pointers,
    rows_of_program,
    store_tile,
    unlabelled_rows,
)


@triton.jit
def softmax_tile_kernel(Z, PROBS, SHAPE, BLOCK: tl.constexpr):
    n, exist = rows_of_program(SHAPE, BLOCK)
    rows = unlabelled_rows(Z, SHAPE, n, exist, exist)
    k = tl.arange(0, BLOCK.k)
    z = load_others(Z, rows, k, SHAPE.K, BLOCK.acc)
    e = tl.exp(z - tl.max(z, 1)[:, None])
    store_tile(PROBS, SHAPE, n, exist, k, e / tl.sum(e, 1)[:, None])


@triton.jit
def softmax_sweep_kernel(Z, PROBS, SHAPE, BLOCK: tl.constexpr):
    n, exist = rows_of_program(SHAPE, BLOCK)
    rows = unlabelled_rows(Z, SHAPE, n, exist, exist)
    m, mass, _, _, _ = sweep_others(Z, rows, n.to(BLOCK.acc), 0, SHAPE.K, False, False, BLOCK)
    for start in range(0, SHAPE.K, BLOCK.k):
        k = start + tl.arange(0, BLOCK.k)
        z = load_others(Z, rows, k, SHAPE.K, BLOCK.acc)
        store_tile(PROBS, SHAPE, n, exist, k, tl.exp(z - m[:, None]) / mass[:, None])


@triton.jit
def softmax_backward_tile_kernel(PROBS, UP, GRAD, SHAPE, BLOCK: tl.constexpr):
    n, exist = rows_of_program(SHAPE, BLOCK)
    p_rows = row_pointers(PROBS, SHAPE, n)
    k = tl.arange(0, BLOCK.k)
    p = load_tile(PROBS, SHAPE, p_rows, exist, k, BLOCK.acc)
    up = load_tile(UP, SHAPE, row_pointers(UP, SHAPE, n), exist, k, BLOCK.acc)
    store_tile(GRAD, SHAPE, n, exist, k, p * (up - tl.sum(p * up, 1)[:, None]))


@triton.jit
def softmax_backward_sweep_kernel(PROBS, UP, GRAD, SHAPE, BLOCK: tl.constexpr):
    n, exist = rows_of_program(SHAPE, BLOCK)
    p_rows, up_rows = row_pointers(PROBS, SHAPE, n), row_pointers(UP, SHAPE, n)
    dot = full_tile(0, BLOCK, BLOCK.acc)
    for start in range(0, SHAPE.K, BLOCK.k):
        k = start + tl.arange(0, BLOCK.k)
        p = load_tile(PROBS, SHAPE, p_rows, exist, k, BLOCK.acc)
        dot += p * load_tile(UP, SHAPE, up_rows, exist, k, BLOCK.acc)
    dot_row = tl.sum(dot, 1)[:, None]
    for start in range(0, SHAPE.K, BLOCK.k):
        k = start + tl.arange(0, BLOCK.k)
        p = load_tile(PROBS, SHAPE, p_rows, exist, k, BLOCK.acc)
        up = load_tile(UP, SHAPE, up_rows, exist, k, BLOCK.acc)
        store_tile(GRAD, SHAPE, n, exist, k, p * (up - dot_row))
