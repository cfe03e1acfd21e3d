"""A swept block by lanes: each keeps one running number where a block has several classes.

Class k of a block belongs to lane (k // vector) % lanes: ``BLOCK.vector`` classes that a thread
loads at once, of each of ``apart`` stretches of the block. A thread has whole lanes, so that what
it has of one merges in its registers, and a sweep keeps few of them. Rows along the threads
(positions) have a lane for each class.
"""

import triton
import triton.language as tl


@triton.jit
def full_lanes(value, BLOCK: tl.constexpr, DTYPE: tl.constexpr):
    """A number for each lane of rows, (BLOCK.n, BLOCK.lanes).

    Triton 3.6 takes no number out of a struct into a shape.
    """
    N: tl.constexpr = BLOCK.n
    LANES: tl.constexpr = BLOCK.lanes
    return tl.full((N, LANES), value, DTYPE)


@triton.jit
def apart(tile, BLOCK: tl.constexpr):
    """A tile (n, k) as (n, apart, lanes, vector)."""
    N: tl.constexpr = BLOCK.n
    APART: tl.constexpr = BLOCK.k // (BLOCK.lanes * BLOCK.vector)
    LANES: tl.constexpr = BLOCK.lanes
    VECTOR: tl.constexpr = BLOCK.vector
    return tl.reshape(tile, (N, APART, LANES, VECTOR))


@triton.jit
def spread(numbers, BLOCK: tl.constexpr):
    """A number for each lane as a tile (n, k)."""
    if BLOCK.lanes == BLOCK.k:
        return numbers
    N: tl.constexpr = BLOCK.n
    K: tl.constexpr = BLOCK.k
    APART: tl.constexpr = BLOCK.k // (BLOCK.lanes * BLOCK.vector)
    LANES: tl.constexpr = BLOCK.lanes
    VECTOR: tl.constexpr = BLOCK.vector
    wide = tl.broadcast_to(numbers[:, None, :, None], (N, APART, LANES, VECTOR))
    return tl.reshape(wide, (N, K))


@triton.jit
def sum_by_lane(tile, BLOCK: tl.constexpr):
    if BLOCK.lanes == BLOCK.k:
        return tile
    return tl.sum(tl.sum(apart(tile, BLOCK), 3), 1)


@triton.jit
def max_by_lane(tile, BLOCK: tl.constexpr):
    if BLOCK.lanes == BLOCK.k:
        return tile
    return tl.max(tl.max(apart(tile, BLOCK), 3), 1)


@triton.jit
def min_by_lane(tile, BLOCK: tl.constexpr):
    if BLOCK.lanes == BLOCK.k:
        return tile
    return tl.min(tl.min(apart(tile, BLOCK), 3), 1)
