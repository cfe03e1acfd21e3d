"""Every CUDA kernel compiles for its targets within a committed budget, without a GPU.

cuda_budget.json holds what the named nvcc makes of the kernels; after a change that earns it,
``python -m tests.audit.write_budget cuda`` writes it anew, and the difference is reviewed.
"""

import json
from pathlib import Path

import pytest
import torch

from tests.audit import compile_cuda, roofline, traffic
from tests.audit.compile_cuda import TARGETS, TYPES, nvcc_version, report

BUDGET = json.loads((Path(__file__).parent / "cuda_budget.json").read_text())
DOCUMENT = (Path(__file__).parents[2] / "docs" / "cuda.md").read_text()
SLACK = 1.02  # of instruction counts

pytestmark = pytest.mark.skipif(
    compile_cuda.why_not() is not None, reason=f"no audit: {compile_cuda.why_not()}"
)
# What sweeps rows of neighbouring classes, or whole tensors.
IN_VECTORS = (
    "warp_rows",
    "cluster_row",
    "grad_rows",
    "tile",
    "grad_tile",
    "scale",
    "softmax",
    "column_grad",
)
SHARDS = [
    f"{kernel} {dtype}" for kernel in ("shard_partials", "shard_sums") for dtype in TYPES.values()
]


@pytest.fixture(params=TARGETS)
def target(request):
    return request.param


def test_no_kernel_spills(target):
    spilling = {name: used for name, used in report(target).items() if used["spilled"]}
    assert not spilling


def test_loads_and_stores_move_16_bytes(target):
    """The disassembly, not the source, says so."""
    swept = {name: used for name, used in report(target).items() if name.startswith(IN_VECTORS)}
    assert len(swept) >= 4 * len(IN_VECTORS)
    for name, used in swept.items():
        assert used["store_bytes"] == 16, name
        assert max(used["load_bytes"], used["copy_bytes"]) == 16, name


def test_shards_are_read_in_vectors(target):
    """Those of neighbouring classes; they write a few numbers for a row."""
    read = {name: used for name, used in report(target).items() if name in SHARDS}
    assert len(read) == len(SHARDS)
    for name, used in read.items():
        assert used["load_bytes"] == 16, name


def test_kept_rows_are_copied_asynchronously_and_read_back_in_vectors(target):
    kept = [used for name, used in report(target).items() if name.startswith("cluster_row kept")]
    assert len(kept) == 4 + 2 * 3  # the common sums have kernels of their own
    for used in kept:
        assert used["copy_bytes"] == 16
        assert used["shared_load_bytes"] == 16


def test_budget_names_every_kernel(target):
    assert set(report(target)) == set(BUDGET["targets"][target])


of_this_compiler = pytest.mark.skipif(
    compile_cuda.why_not() is None and nvcc_version() != BUDGET["nvcc"],
    reason=f"the budget is of nvcc {BUDGET['nvcc']}",
)


@of_this_compiler
def test_registers_and_shared_memory_stay_within_budget(target):
    budget = BUDGET["targets"][target]
    over = {
        name: (used, budget[name])
        for name, used in report(target).items()
        if any(used[key] > budget[name][key] for key in ("registers", "shared"))
    }
    assert not over


@of_this_compiler
def test_loops_take_no_more_instructions_than_the_budget(target):
    kernels, budget = report(target), BUDGET["targets"][target]
    swept = [name for name in kernels if "loops" in kernels[name]]
    assert len(swept) == 2 * 3
    for name in swept:
        loops, allowed = kernels[name]["loops"], budget[name]["loops"]
        assert set(loops) == set(allowed) == set(loops_expected(name))
        for loop, costs in loops.items():
            for what, number in costs.items():
                assert number <= SLACK * allowed[loop][what], (name, loop, what)


def loops_expected(name):
    return compile_cuda.LOOPS_OF[name.rpartition(" ")[0]]


def test_the_document_has_these_bounds():
    assert roofline.table() in DOCUMENT, "docs/cuda.md: paste `python -m tests.audit.roofline`"


@pytest.mark.skipif(torch.cuda.is_available(), reason="the table is the emulated H200's")
def test_the_document_has_these_figures(cuda_backend):
    assert traffic.table() in DOCUMENT, "docs/cuda.md: paste `python -m tests.audit.traffic`"
