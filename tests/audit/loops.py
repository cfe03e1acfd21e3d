"""The loops of a kernel's disassembly that sweep a kept row, and what a class costs in them.

Such a loop runs from the target of a backward branch to the branch, with no other inside, and moves
vectors of 16 bytes. What it does is told by its instructions. A kernel has other loops as well, for
what is unusual about a row: of those that do the same, the cheapest is the one for most rows.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

LOOPS = ("copy", "extremes", "powers", "powers and total", "sums", "gradient", "clamped gradient")
"""In their order. A row goes through copy, extremes, one of the powers, and a gradient; one with
clamped classes through sums too."""
UNCLAMPED = tuple(name for name in LOOPS if name not in ("sums", "clamped gradient"))

# Of compute capability 9.0 and its like, what the pipe takes that does 64 lanes in a cycle.
ALU = frozenset(
    (
        *("F2FP", "FMNMX", "FMNMX3", "FSEL", "FSET", "FSETP", "HMNMX2", "I2FP", "VHMNMX"),
        *("BMSK", "IABS", "IADD", "IADD3", "IMNMX", "ISETP", "LEA", "LOP3", "MOV", "P2R", "PLOP3"),
        *("PRMT", "R2P", "SEL", "SGXT", "SHF", "VIADD", "VIADDMNMX", "VIMNMX"),
    )
)
_INSTRUCTION = re.compile(r"^\s+/\*(?P<at>[0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?(?P<text>[^;]+);")
_BACK = re.compile(r"BRA(?:\.\S+)?\s+(?:!?U?P\d,\s*)?0x(?P<to>[0-9a-f]+)")


@dataclass(frozen=True)
class Loop:
    """Instructions by name, and the vectors of 16 bytes that they move."""

    count: Counter[str]
    vectors: int
    stores: int

    def of_class(self, size: int) -> dict[str, float]:
        """For a class of ``size`` bytes."""
        classes = self.vectors * 16 // size
        alu = sum(number for name, number in self.count.items() if name in ALU)
        numbers = {"instructions": self.count.total(), "alu": alu, "mufu": self.count["MUFU"]}
        return {name: round(number / classes, 3) for name, number in numbers.items()}

    def does(self, size: int) -> str | None:
        """Which of LOOPS it is."""
        count, classes = self.count, self.vectors * 16 // size
        if count["LDGSTS"]:
            return "copy"
        if count["MUFU"] == classes and self.stores == self.vectors:
            return "clamped gradient" if count["FSETP"] >= classes else "gradient"
        if count["MUFU"] == classes and not self.stores and count["FADD"] >= classes:
            return "powers and total" if count["FADD"] >= 2 * classes else "powers"
        if not count["MUFU"] and not self.stores:
            if count["FADD"] >= 3 * classes:
                return "sums"
            if any("MNMX" in name for name in count) and not count["FADD"]:
                return "extremes"
        return None


def sweeps(sass: str, size: int, expected: Sequence[str]) -> dict[str, dict[str, float]]:
    """Those of the expected LOOPS that a kernel has, for classes of ``size`` bytes."""
    found: dict[str, dict[str, float]] = {}
    for loop in _loops(sass):
        what = loop.does(size)
        if what is None:
            continue
        costs = loop.of_class(size)
        if what not in found or costs["instructions"] < found[what]["instructions"]:
            found[what] = costs
    return {name: found[name] for name in expected if name in found}


def _loops(sass: str) -> list[Loop]:
    lines = [found for line in sass.splitlines() if (found := _INSTRUCTION.match(line))]
    addresses = {int(line["at"], 16): index for index, line in enumerate(lines)}
    loops, innermost_from = [], 0
    for end, line in enumerate(lines):
        back = _BACK.match(line["text"])
        begin = addresses.get(int(back["to"], 16), end + 1) if back else end + 1
        if begin > end or begin < innermost_from:
            continue
        innermost_from = end + 1
        texts = [line["text"] for line in lines[begin : end + 1]]
        loop = _loop(texts)
        if loop.vectors and not loop.count["CALL"]:
            loops.append(loop)
    return loops


def _loop(texts: list[str]) -> Loop:
    def number_of(pattern: str) -> int:
        return sum(bool(re.match(pattern, text)) for text in texts)

    count = Counter(re.split(r"[.\s]", text, maxsplit=1)[0] for text in texts)
    return Loop(count, number_of(r"(LDS|LDGSTS)\.\S*128"), number_of(r"STG\.\S*128"))
