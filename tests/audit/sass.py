"""The sweeps of a kernel in NVIDIA's machine code, and what an element costs in each.

A sweep is a loop that loads logits. It is gone round the cheapest way there is: blocks with the
target or the end of a row in them, which take another, are two of a row's many. The figures are
counts of instructions. They bound a time from below, on a machine that issues one for a scheduler
in a cycle, and are not one.
"""

from __future__ import annotations

import re
from typing import NamedTuple

INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,6})\*/\s+(?:(@\S+)\s+)?([A-Z][\w.]*)(.*?);")
LABEL = re.compile(r"^(\.L_x_\d+):")
BRANCH_TARGET = re.compile(r"`\((\.L_x_\d+)\)")

# The pipe for integers, comparisons, selections and conversions: half the lanes of that for
# floating-point sums. IMAD, which also moves and shifts, is of the other.
ALU = {
    "BMSK", "F2FP", "FMNMX", "FMNMX3", "FSEL", "FSET", "FSETP", "HMNMX2", "HSET2", "HSETP2", "I2FP",
    "IADD3", "IABS", "IMNMX", "ISETP", "LEA", "LOP3", "MOV", "PLOP3", "PRMT", "SEL", "SGXT", "SHF",
    "VIADD", "VIADDMNMX", "VIMNMX",
}  # fmt: skip


class Instruction(NamedTuple):
    """``op`` has its modifiers, such as LDG.E.128; ``target`` is the label that it branches to."""

    op: str
    predicated: bool
    target: str | None

    @property
    def name(self) -> str:
        """The op alone."""
        return self.op.split(".")[0]


class Cost(NamedTuple):
    """For an element of the logits."""

    instructions: float
    alu: float
    mufu: float
    """Of the unit for 2^x, reciprocals and logarithms."""


def sweeps(sass: str, itemsize: int) -> list[Cost]:
    """The cost of each sweep of a kernel, in order, out of what nvdisasm prints of it."""
    instructions, labels = _parse(sass)
    loops = [
        (labels[ins.target], end)
        for end, ins in enumerate(instructions)
        if ins.target in labels and labels[ins.target] < end
    ]
    ways = [_cheapest_way(instructions, labels, *loop) for loop in loops]
    return [_cost(way, itemsize) for way in ways if any(ins.name == "LDG" for ins in way)]


def _parse(sass: str) -> tuple[list[Instruction], dict[str | None, int]]:
    instructions: list[Instruction] = []
    labels: dict[str | None, int] = {}
    for line in sass.splitlines():
        if found := LABEL.match(line):
            labels[found[1]] = len(instructions)
        elif found := INSTRUCTION.match(line):
            _, predicate, op, operands = found.groups()
            target = BRANCH_TARGET.search(operands) if op.startswith("BRA") else None
            instructions.append(Instruction(op, bool(predicate), target and target[1]))
    return instructions, labels


def _cheapest_way(
    instructions: list[Instruction], labels: dict[str | None, int], start: int, end: int
) -> list[Instruction]:
    """The fewest instructions from the head of a loop to the branch that closes it."""
    ways: dict[int, list[int]] = {start: []}
    for here in range(start, end + 1):
        if here not in ways:
            continue
        way, ins = [*ways[here], here], instructions[here]
        if here == end:
            return [instructions[i] for i in way]
        leaves = ins.name in ("BRA", "EXIT", "RET") and not ins.predicated
        for there in ([] if leaves else [here + 1]) + [labels.get(ins.target, -1)]:
            if here < there <= end and len(way) < len(ways.get(there, instructions)):
                ways[there] = way
    raise ValueError("the loop does not close")


def _cost(way: list[Instruction], itemsize: int) -> Cost:
    elements = sum(_load_bytes(ins) for ins in way) / itemsize
    counts = len(way), sum(i.name in ALU for i in way), sum(i.name == "MUFU" for i in way)
    return Cost(*(round(count / elements, 2) for count in counts))


def _load_bytes(ins: Instruction) -> int:
    if ins.name != "LDG":
        return 0
    widths = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
    return next((widths[part] for part in ins.op.split(".") if part in widths), 4)
