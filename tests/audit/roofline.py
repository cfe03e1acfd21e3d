"""What the loops over a kept row need of the time in which an H200 would copy it: counted, not
timed.

``python -m tests.audit.roofline`` prints the table of docs/cuda.md out of cuda_budget.json. A share
is a bound from instruction counts: the loops' instructions, and no others, at the rate at which
they can start, against the time of reading and writing the row at the speed of a copy.
"""

import json
from pathlib import Path

BUDGET = json.loads((Path(__file__).parent / "cuda_budget.json").read_text())
TARGET = "sm_90a"
SIZES = {"bfloat16": 2, "float32": 4}
COPY, PROCESSORS = 4.3e12, 132  # bytes a second that a copy moves, read and written; of an H200
CLOCKS = (1.7e9, 1.98e9)  # under load, and at most
LANES = {"instructions": 128, "alu": 64, "mufu": 16}  # that start in a cycle
ONE_PASS = ("copy", "extremes")
ROWS = {
    "CE": ("none", (*ONE_PASS, "powers", "gradient")),
    "ANL-CE, none clamped": ("line", (*ONE_PASS, "powers and total", "gradient")),
    "ANL-CE, some clamped": ("line", (*ONE_PASS, "powers and total", "sums", "clamped gradient")),
}
HEADER = (
    "dtype", "row", "copy", "extremes", "powers", "sums", "gradient", "all", "ALU", "MUFU",
    "issue slots at 1.7 GHz", "at 1.98 GHz", "ALU at 1.7 GHz", "MUFU at 1.7 GHz",
)  # fmt: skip


def cycles_of_copy(size, clock):
    """Of a multiprocessor, for a class that is read and written."""
    return 2 * size * PROCESSORS * clock / COPY


def share(pipe, number, size, clock):
    """Of a copy's time that a pipe needs for this many instructions of a class."""
    return f"{number / LANES[pipe] / cycles_of_copy(size, clock):.0%}"


def rows():
    """One for each dtype and kind of row."""
    kernels = BUDGET["targets"][TARGET]
    for dtype, size in SIZES.items():
        for row, (dense, names) in ROWS.items():
            loops = kernels[f"cluster_row kept {dense} {dtype}"]["loops"]
            total = {pipe: sum(loops[name][pipe] for name in names) for pipe in LANES}
            counts = [loops[name]["instructions"] for name in names]
            if "sums" not in names:
                counts.insert(3, "-")
            yield (
                *(dtype, row, *counts),
                *(f"{total[pipe]:.1f}" for pipe in LANES),
                *(share("instructions", total["instructions"], size, clock) for clock in CLOCKS),
                *(share(pipe, total[pipe], size, CLOCKS[0]) for pipe in ("alu", "mufu")),
            )


def table():
    """Markdown."""
    lines = [HEADER, ["---"] * len(HEADER), *rows()]
    return "\n".join(
        "| " + " | ".join(f"{x:.1f}" if isinstance(x, float) else str(x) for x in line) + " |"
        for line in lines
    )


if __name__ == "__main__":
    print(table())
