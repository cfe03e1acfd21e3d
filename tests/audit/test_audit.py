"""Every kernel compiles for its targets within a committed budget, on a machine without a GPU.

budget.json holds what Triton's pinned release makes of each launch; after a change that earns it,
``python -m tests.audit.write_budget triton`` writes it anew, and the difference is reviewed.
"""

import json
import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest

from tests.audit.sweeps import cost_of_row, table

triton = pytest.importorskip("triton")

HERE = Path(__file__).parent
BUDGET = json.loads((HERE / "budget.json").read_text())
SLACK = 1.02  # instructions for an element


def compile_for(target):
    """The report of compile_kernels.py, which needs a process without the interpreter."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env["PYTHONPATH"] = str(HERE.parents[1])
    command = [sys.executable, "-m", "tests.audit.compile_kernels", target]
    result = subprocess.run(command, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


compiled = lru_cache(compile_for)

pytestmark = pytest.mark.skipif(
    triton.__version__ != BUDGET["triton"],
    reason=f"the budget is of Triton {BUDGET['triton']}, this is {triton.__version__}",
)


@pytest.mark.parametrize("target", BUDGET["targets"])
class TestAudit:
    def test_no_launch_spills(self, target):
        spilling = {name: used for name, used in compiled(target).items() if used["spilled"]}
        assert not spilling

    def test_registers_and_shared_memory_stay_within_budget(self, target):
        budget = BUDGET["targets"][target]
        over = {
            name: (used, budget[name])
            for name, used in compiled(target).items()
            if any(used[key] > budget[name][key] for key in ("registers", "shared"))
        }
        assert not over

    def test_loads_and_stores_stay_as_wide(self, target):
        budget = BUDGET["targets"][target]
        narrower = {
            name: (used, budget[name])
            for name, used in compiled(target).items()
            if any(used[key] < budget[name][key] for key in ("load_bits", "store_bits"))
        }
        assert not narrower

    def test_aligned_rows_move_16_bytes_at_a_time(self, target):
        swept = [used for name, used in compiled(target).items() if name.startswith("sweep131072")]
        assert swept
        if target != "gfx942":
            assert all(used["load_bits"] == 128 for used in swept)

    def test_rows_of_eights_move_16_bytes_at_a_time(self, target):
        """1000 is no multiple of 16, which is all that the compiler looks for by itself."""
        used = compiled(target)["rows1000_bf16_ce/row_tile_kernel"]
        if target.startswith("sm"):
            assert (used["load_bits"], used["store_bits"]) == (128, 128)

    def test_sweeps_cost_no_more(self, target):
        budget = BUDGET["targets"][target]
        dearer = {
            (name, purpose): (cost, budget[name]["sweeps"][purpose])
            for name, used in compiled(target).items()
            for purpose, cost in used.get("sweeps", {}).items()
            if any(cost[k] > SLACK * budget[name]["sweeps"][purpose][k] for k in cost)
        }
        assert not dearer

    def test_budget_names_every_launch(self, target):
        assert set(compiled(target)) == set(BUDGET["targets"][target])


@pytest.mark.parametrize("num_classes", [32768, 131072])
@pytest.mark.parametrize(("terms", "most"), [("ce", 20), ("anl", 36)])
def test_what_an_element_of_bfloat16_may_cost(terms, most, num_classes):
    """In all sweeps of a row, on sm_90."""
    assert cost_of_row(f"sweep{num_classes}_bf16_{terms}").instructions <= most


def test_the_table_of_sweeps_is_in_the_documents():
    document = (HERE.parents[1] / "docs" / "cuda.md").read_text()
    assert table() in document, "docs/cuda.md: paste `python -m tests.audit.sweeps`"


def test_a_case_for_every_kernel():
    from tests.triton.forms import LAUNCHERS, kernel_names

    audited = {name.split("/")[1] for name in BUDGET["targets"]["sm_90"]}
    assert audited == kernel_names(*LAUNCHERS)


def test_the_compiled_in_terms_carry_their_source():
    """Triton's disk cache must not serve a functor as it was before an edit or a new release."""
    script = (
        "from anl_kernels.backends.triton.structs import compiled\n"
        "from anl_kernels.backends.triton.terms import FUNCTORS\n"
        "from anl_kernels.terms import NNCE, as_terms\n"
        "before = str(compiled(as_terms(NNCE())))\n"
        "compiled.cache_clear()\n"
        "nfl = FUNCTORS['nfl']\n"
        "FUNCTORS['nnce'] = FUNCTORS['nnce']._replace(phi=nfl.phi)\n"
        "nfl.phi.__class__.__repr__ = lambda self: 'same name'\n"
        "after = str(compiled(as_terms(NNCE())))\n"
        "assert before[-200:] != after[-200:], (before, after)\n"
    )
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env["PYTHONPATH"] = str(HERE.parents[1])
    result = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
