"""Which kernel sweeps a row, with which blocks: tables of (limit, value), with their reasons."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

Kind = Literal["tile", "sweep", "split"]

# Float32 values of a tile that a thread holds. The sums, the softmax and the phi of a row then fit
# in its registers without spilling on any target; tests/audit holds every launch to that. More
# dense terms keep more beside each value: (dense terms up to, values).
VALUES = 16
VALUES_BY_DENSE_TERMS = ((1, VALUES), (3, 8), (1 << 30, 4))
VALUES_OF_POSITIONS = 8  # rows along the threads: every thread keeps the sums of several rows

# A row in registers: the widest program is 16 warps (on AMD 16 wavefronts of 64).
MAX_WARPS = 16
TILE_LIMIT = 8192

# Short rows share a program. Every thread carries some thirty numbers for each row it works on, so
# that it may not work on many: 2 values a thread (with 4, sm_80 spills at K = 10).
PROGRAM_OF_SHORT_ROWS, WARPS_OF_SHORT_ROWS = 512, 8

# A sweep's block, (dense terms up to, classes, warps): 16 values a thread are two 16-byte loads of
# 16-bit logits in flight. ptxas aims at 64 or 128 registers and would rather spill two than miss
# them; from two dense terms on it leaves that only with 16 warps (tried: 512 to 8192 classes with
# 4, 8, 16 and 32 warps on sm_80, sm_90 and sm_100).
SWEEP_BLOCKS = ((1, 4096, 8), (2, 8192, 16), (1 << 30, 2048, 16))

# With the class dimension first, neighbouring threads take neighbouring positions: 64 positions
# are 128 bytes of 16-bit logits; few classes are then held at once, many are swept.
POSITIONS, POSITION_CLASSES = 64, 32

# Column sums: a program keeps one sum for each value of its tile, COLUMNS classes wide at most,
# and meets enough rows that the partial sums are small against the logits.
COLUMNS, COLUMN_TILES, COLUMN_PROGRAMS_PER_PROCESSOR = 256, 8, 4

# Fewer rows than this leave multiprocessors idle (132 on an H100); a row is worth splitting once
# a part is still several sweep blocks long.
SPLIT_BELOW_ROWS, SPLIT_FROM_CLASSES, PART = 64, 1 << 17, 1 << 15
MAX_SPLITS = 1024

# A sweep's lanes: one for each thread where warps are 64 wide (AMD), so that a thread has whole
# lanes on every target.
LANES_OF_WARP = 64


class Plan(NamedTuple):
    """How a kernel is launched."""

    kind: Kind
    block_n: int
    block_k: int
    num_warps: int
    part: int = 0
    """Classes in a part of a split row."""
    lanes: int = 0
    """How many numbers a sweep keeps of a row, see lanes.py; 0 is one for each class of a block."""


def plan_rows(
    num_rows: int,
    num_classes: int,
    class_first: bool,
    dtype: torch.dtype,
    num_dense: int = 0,
    may_split: bool = True,
) -> Plan:
    """The kind and blocks for rows of ``num_classes`` logits and ``num_dense`` dense terms."""
    if class_first:
        return _positions(num_classes, dtype, whole_rows=True)
    crowd = _width(dtype) * (VALUES // _values(num_dense))
    block_k = _power_of_two(num_classes)
    if block_k * crowd <= TILE_LIMIT:
        if block_k * crowd < PROGRAM_OF_SHORT_ROWS:
            block_n = PROGRAM_OF_SHORT_ROWS // (block_k * crowd)
            return Plan("tile", block_n, block_k, WARPS_OF_SHORT_ROWS)
        return Plan("tile", 1, block_k, _warps(block_k * crowd, VALUES))
    block_k, warps = _sweep_block(num_dense)
    block_k //= _width(dtype)
    if may_split and num_rows < SPLIT_BELOW_ROWS and num_classes >= SPLIT_FROM_CLASSES:
        part = max(PART, _power_of_two(-(-num_classes // MAX_SPLITS)))
        return Plan("split", 1, block_k, warps, part, LANES_OF_WARP * warps)
    return Plan("sweep", 1, block_k, warps, lanes=LANES_OF_WARP * warps)


def for_sums(plan: Plan, dtype: torch.dtype) -> Plan:
    """The plan of a kernel that does nothing with rows but sum their dense terms.

    It needs so few registers that for float64 ptxas aims at 40, and misses them by two; with twice
    the warps it does not.
    """
    if plan.kind == "tile" or dtype != torch.float64:
        return plan
    return plan._replace(num_warps=MAX_WARPS, lanes=LANES_OF_WARP * MAX_WARPS)


def plan_tiles(num_classes: int, class_first: bool, dtype: torch.dtype) -> Plan:
    """Blocks of an element-wise kernel, whose programs each write one tile."""
    if class_first:
        return _positions(num_classes, dtype, whole_rows=False)
    values = 2048 // _width(dtype)
    block_k = min(_power_of_two(num_classes), values)
    return Plan("tile", max(1, values // block_k), block_k, 4)


def plan_column_sums(
    num_rows: int, num_classes: int, class_first: bool, dtype: torch.dtype, processors: int
) -> tuple[Plan, int]:
    """Blocks for sums over rows, and how many rows a program adds up."""
    plan = plan_tiles(min(num_classes, COLUMNS), class_first, dtype)
    across = -(-num_classes // plan.block_k)
    wanted = max(1, COLUMN_PROGRAMS_PER_PROCESSOR * processors // across)
    tiles = -(-num_rows // (wanted * plan.block_n))
    return plan, plan.block_n * max(tiles, COLUMN_TILES)


def _positions(num_classes: int, dtype: torch.dtype, whole_rows: bool) -> Plan:
    block_k = min(_power_of_two(num_classes), POSITION_CLASSES // _width(dtype))
    kind: Kind = "sweep" if whole_rows and block_k < num_classes else "tile"
    return Plan(kind, POSITIONS, block_k, _warps(POSITIONS * block_k, VALUES_OF_POSITIONS))


def _width(dtype: torch.dtype) -> int:
    """Registers that a value asks for: float64 two, and its exp in software as many again."""
    return 4 if dtype == torch.float64 else 1


def _values(num_dense: int) -> int:
    return next(values for limit, values in VALUES_BY_DENSE_TERMS if num_dense <= limit)


def _sweep_block(num_dense: int) -> tuple[int, int]:
    return next((block, warps) for limit, block, warps in SWEEP_BLOCKS if num_dense <= limit)


def _power_of_two(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def _warps(values: int, values_per_thread: int) -> int:
    return min(MAX_WARPS, max(1, values // (32 * values_per_thread)))
