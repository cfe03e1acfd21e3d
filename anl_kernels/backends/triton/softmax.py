"""Softmax and its backward, on the row kernels' layouts."""

import triton
import triton.language as tl

from anl_kernels.backends.triton.forward import sweep_others
from anl_kernels.backends.triton.lanes import full_lanes, sum_by_lane
from anl_kernels.backends.triton.numerics import exp
from anl_kernels.backends.triton.rows import (
    load_classes,
    load_tile,
    row_pointers,
    rows_of_program,
    store_tile,
    unlabelled_rows,
)


@triton.jit
def softmax_tile_kernel(Z, PROBS, SHAPE, BLOCK: tl.constexpr):
    n, exist = rows_of_program(SHAPE, BLOCK)
    rows = unlabelled_rows(Z, SHAPE, n, exist, exist, BLOCK)
    z = load_classes(Z, rows, 0, SHAPE.K, BLOCK)
    e = exp(z - tl.max(z, 1)[:, None])
    store_tile(PROBS, SHAPE, n, exist, 0, e / tl.sum(e, 1)[:, None], BLOCK)


@triton.jit
def softmax_sweep_kernel(Z, PROBS, SHAPE, BLOCK: tl.constexpr):
    n, exist = rows_of_program(SHAPE, BLOCK)
    rows = unlabelled_rows(Z, SHAPE, n, exist, exist, BLOCK)
    m, mass, _, _, _ = sweep_others(Z, rows, 0, SHAPE.K, False, False, BLOCK)
    for first in range(0, SHAPE.K, BLOCK.k):
        z = load_classes(Z, rows, first, SHAPE.K, BLOCK)
        store_tile(PROBS, SHAPE, n, exist, first, exp(z - m[:, None]) / mass[:, None], BLOCK)


@triton.jit
def softmax_backward_tile_kernel(PROBS, UP, GRAD, SHAPE, BLOCK: tl.constexpr):
    n, exist = rows_of_program(SHAPE, BLOCK)
    p_rows = row_pointers(PROBS, SHAPE, n, BLOCK)
    p = load_tile(PROBS, SHAPE, p_rows, exist, 0, BLOCK)
    up = load_tile(UP, SHAPE, row_pointers(UP, SHAPE, n, BLOCK), exist, 0, BLOCK)
    store_tile(GRAD, SHAPE, n, exist, 0, p * (up - tl.sum(p * up, 1)[:, None]), BLOCK)


@triton.jit
def softmax_backward_sweep_kernel(PROBS, UP, GRAD, SHAPE, BLOCK: tl.constexpr):
    n, exist = rows_of_program(SHAPE, BLOCK)
    p_rows, up_rows = row_pointers(PROBS, SHAPE, n, BLOCK), row_pointers(UP, SHAPE, n, BLOCK)
    dot = full_lanes(0, BLOCK, BLOCK.acc)
    for first in range(0, SHAPE.K, BLOCK.k):
        p = load_tile(PROBS, SHAPE, p_rows, exist, first, BLOCK)
        up = load_tile(UP, SHAPE, up_rows, exist, first, BLOCK)
        dot += sum_by_lane(p * up, BLOCK)
    dot_row = tl.sum(dot, 1)[:, None]
    for first in range(0, SHAPE.K, BLOCK.k):
        p = load_tile(PROBS, SHAPE, p_rows, exist, first, BLOCK)
        up = load_tile(UP, SHAPE, up_rows, exist, first, BLOCK)
        store_tile(GRAD, SHAPE, n, exist, first, p * (up - dot_row), BLOCK)
