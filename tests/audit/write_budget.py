"""Write the budgets from what the compilers make of the kernels now.

``python -m tests.audit.write_budget [triton] [cuda]``: these, or both.
"""

import json
import sys
from pathlib import Path

HERE = Path(__file__).parent


def triton_budget():
    import triton

    from tests.audit.compile_kernels import BUDGETED
    from tests.audit.test_audit import compile_for

    return {
        "triton": triton.__version__,
        "targets": {target: compile_for(target) for target in BUDGETED},
    }


def cuda_budget():
    from tests.audit.compile_cuda import TARGETS, nvcc_version, report

    return {"nvcc": nvcc_version(), "targets": {target: report(target) for target in TARGETS}}


BUDGETS = {
    "triton": ("budget.json", triton_budget),
    "cuda": ("cuda_budget.json", cuda_budget),
}

if __name__ == "__main__":
    for name in sys.argv[1:] or BUDGETS:
        file, make = BUDGETS[name]
        (HERE / file).write_text(json.dumps(make(), indent=1) + "\n")
