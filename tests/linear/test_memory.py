"""What a step takes beside its inputs is a chunk and the gradients: measured, in a new process."""

import json
import os

import pytest

from tests.cpu.processes import run_script

pytestmark = pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK) or "asan" in os.environ.get("LD_PRELOAD", ""),
    reason="no peak of memory to reset, or not the program's own memory alone",
)

N, D, K = 1024, 128, 16000
CHUNK, SLACK = 8, 2  # MiB
OF_HIDDEN, OF_WEIGHT = N * D * 4 / 2**20, K * D * 4 / 2**20
GRADIENTS = OF_HIDDEN + OF_WEIGHT


def fused(**options):
    options = {"chunk_bytes": CHUNK << 20} | options
    given = "".join(f", {name}={value}" for name, value in options.items())
    return f"ak.linear_robust_loss(hidden, weight, target, terms{given})"


# What is measured, by the dtype and whether hidden states and weight are trained; and MiB.
STEPS = {
    "no gradients": (fused(), "float32", False, False, CHUNK),
    "weight frozen": (fused(), "float32", True, False, CHUNK + OF_HIDDEN),
    "mean": (fused(), "float32", True, True, CHUNK + GRADIENTS),
    "none": (fused(reduction="'none'"), "float32", True, True, CHUNK + GRADIENTS),
    "not skipped": (fused(skip_ignored=False), "float32", True, True, CHUNK + GRADIENTS),
    "softcap": (fused(logit_softcap=30.0), "float32", True, True, 2 * CHUNK + GRADIENTS),
}
OTHERS = {
    "wide sums": (fused(), "bfloat16", True, True),
    "one chunk": (fused(chunk_bytes=2 * N * K), "bfloat16", True, True),
    "one chunk, narrow sums": (
        fused(chunk_bytes=2 * N * K, accum_dtype="torch.bfloat16"),
        "bfloat16",
        True,
        True,
    ),
    "narrow sums": (fused(accum_dtype="torch.bfloat16"), "bfloat16", True, True),
    "unfused": ("ak.robust_loss(F.linear(hidden, weight), target, terms)", "float32", True, True),
}
SCRIPT = """
import json
import torch
import torch.nn.functional as F
import anl_kernels as ak
from benchmarks.memory import peak_growth

def peak(loss, dtype, by_hidden, by_weight):
    numbers = {"dtype": getattr(torch, dtype)}
    target = torch.randint(K, (N,))
    target[::4] = -100
    names = {
        "torch": torch, "ak": ak, "F": F, "target": target, "terms": 5.0 * ak.NCE() + ak.NNCE(),
        "hidden": torch.randn(N, D, requires_grad=by_hidden, **numbers),
        "weight": torch.randn(K, D, requires_grad=by_weight, **numbers),
    }
    leaves = [names[name] for name in ("hidden", "weight") if names[name].requires_grad]

    def step():
        made = eval(loss, names)
        if leaves:
            torch.autograd.grad(made.sum(), leaves)

    step()  # the libraries of products keep memory for the next ones
    ak.empty_cpu_cache()
    growth = peak_growth(step) / 2**20
    ak.empty_cpu_cache()
    return growth

print(json.dumps({name: peak(*asked[:4]) for name, asked in STEPS.items()}))
"""


@pytest.fixture(scope="module")
def peaks():
    """MiB that each step takes at most beside what was there before."""
    given = f"N, D, K, STEPS = {N}, {D}, {K}, {STEPS | OTHERS!r}\n"
    return json.loads(run_script(given + SCRIPT, OMP_NUM_THREADS="1"))


@pytest.mark.parametrize("name", STEPS)
def test_a_chunk_and_the_gradients(name, peaks):
    expected = STEPS[name][-1]
    assert expected - SLACK <= peaks[name] <= expected + SLACK


def test_without_the_fusion_all_logits_are_there_and_their_gradient(peaks):
    assert peaks["unfused"] >= 2 * N * K * 4 / 2**20


def test_sums_in_the_weights_dtype_spare_the_wide_ones(peaks):
    assert peaks["wide sums"] - peaks["narrow sums"] >= OF_WEIGHT - SLACK


def test_one_chunk_has_no_sums(peaks):
    assert abs(peaks["one chunk"] - peaks["one chunk, narrow sums"]) <= SLACK
