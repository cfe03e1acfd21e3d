"""Write budget.json from what the installed Triton makes of the kernels now."""

import json

import triton

from tests.audit.compile_kernels import TARGETS
from tests.audit.test_audit import HERE, compile_for

if __name__ == "__main__":
    targets = {target: compile_for(target) for target in TARGETS}
    budget = {"triton": triton.__version__, "targets": targets}
    text = json.dumps(budget, indent=1)
    (HERE / "budget.json").write_text(text + "\n")
