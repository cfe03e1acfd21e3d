"""What an element costs in the sweeps of Triton's long rows, out of budget.json.

``python -m tests.audit.sweeps`` prints the table of docs/cuda.md. Nobody ran the kernels: shares of
a copy's time are bounds from counts of instructions, not timings.
"""

import json
from pathlib import Path

from tests.audit.sass import Cost

BUDGET = json.loads((Path(__file__).parent / "budget.json").read_text())
ROWS = {
    "CE": {"bfloat16": "sweep131072_bf16_ce", "float32": "sweep131072_f32_ce"},
    "5 NCE + 5 NNCE": {"bfloat16": "sweep131072_bf16_anl", "float32": "sweep131072_f32_anl"},
}
RARE = "missing classes"  # a sweep that rows without a logit of -inf do not make
BYTES = {"bfloat16": 2, "float32": 4}

# Of an H200: bytes a second by its datasheet; multiprocessors, their clock at its highest, and what
# they issue in a cycle, in lanes: of all instructions, of those of the ALU and of MUFU.
BANDWIDTH, PROCESSORS, CLOCK = 4.8e12, 132, 1.98e9
LANES = Cost(instructions=128, alu=64, mufu=16)


def sweeps_of(case: str, target: str = "sm_90") -> dict[str, Cost]:
    """The cost of every sweep of a case, by what it is for."""
    sweeps = BUDGET["targets"][target][f"{case}/row_sweep_kernel"]["sweeps"]
    return {purpose: Cost(**cost) for purpose, cost in sweeps.items()}


def cost_of_row(case: str) -> Cost:
    """Of all sweeps that every row makes."""
    costs = [cost for purpose, cost in sweeps_of(case).items() if purpose != RARE]
    return Cost(*(round(sum(numbers), 2) for numbers in zip(*costs, strict=True)))


def bounds(cost: Cost, itemsize: int) -> list[str]:
    """The least share of the time of one copy (an element read, one written), for each number."""
    elements = BANDWIDTH / (2 * itemsize)
    rates = (PROCESSORS * CLOCK * lanes for lanes in LANES)
    return [f"{elements * n / rate:.0%}" for n, rate in zip(cost, rates, strict=True)]


def rows():
    """One for each sweep, and one for all sweeps of a row."""
    for terms, cases in ROWS.items():
        for dtype, case in cases.items():
            for purpose, cost in sweeps_of(case).items():
                yield terms, dtype, purpose, *(f"{n:.1f}" for n in cost), "", "", ""
            cost = cost_of_row(case)
            yield terms, dtype, "row", *(f"{n:.1f}" for n in cost), *bounds(cost, BYTES[dtype])


HEADER = (
    "terms", "dtype", "sweep", "instructions", "ALU", "MUFU",
    "issue bound", "ALU bound", "MUFU bound",
)  # fmt: skip


def table() -> str:
    """Markdown."""
    lines = [HEADER, ["---"] * len(HEADER), *rows()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    print(table())
