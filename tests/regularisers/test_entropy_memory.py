"""No tensor of the logits' size lives beside the gradient: measured, in a new process."""

import json
import os

import pytest

from tests.cpu.processes import run_script

pytestmark = pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK) or "asan" in os.environ.get("LD_PRELOAD", ""),
    reason="no peak of memory to reset, or not the program's own memory alone",
)

N, K = 512, 16000
LOGITS, SLACK = N * K * 4 / 2**20, 4  # MiB

# What is computed of logits and target, and whether its gradient is; and how many of their size.
STEPS = {
    "the regulariser alone": ("ak.entropy_regulariser(logits)", False, 0),
    "and its gradient": ("ak.entropy_regulariser(logits)", True, 1),
    "of some rows": ("ak.entropy_regulariser(logits, counted=target > 99)", True, 1),
    "the loss alone": ("loss(logits, target)", True, 1),
    "the regularised loss": ("regularised(logits, target)", True, 1),
    "which recomputes": ("regularised_sum(logits, target, weights)", True, 1),
}
OTHERS = {
    "reference": ("on_the_reference(logits)", True, 1),
    "added up by autograd": ("loss(logits, target) + ak.entropy_regulariser(logits)", True, 2),
}
SCRIPT = """
import json
import torch
import anl_kernels as ak
from benchmarks.memory import peak_growth

logits = torch.randn(N, K, requires_grad=True)
target = torch.randint(K, (N,))
weights = torch.rand(N, requires_grad=True)
loss = ak.ActiveNegativeLoss(5.0, 5.0)
regularised = ak.EntropyRegularisedLoss(loss, 2.0)
regularised_sum = ak.EntropyRegularisedLoss(ak.ActiveNegativeLoss(reduction="sum"), 2.0)

def on_the_reference(logits):
    with ak.use_backend("reference"):
        return ak.entropy_regulariser(logits)

def peak(step, backward):
    def run():
        made = eval(step)
        if backward:
            torch.autograd.grad(made, logits)
    run()
    ak.empty_cpu_cache()
    growth = peak_growth(run) / 2**20
    ak.empty_cpu_cache()
    return growth

print(json.dumps({name: peak(*asked[:2]) for name, asked in STEPS.items()}))
"""


@pytest.fixture(scope="module")
def peaks():
    """MiB that each step takes at most beside what was there before.

    glibc would put pieces of up to 32 MiB into its heap, which keeps what is freed between others:
    another 9 to 12 MiB, from run to run. Pieces of their own are given back.
    """
    given = f"N, K, STEPS = {N}, {K}, {STEPS | OTHERS!r}\n"
    surroundings = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "131072"}
    return json.loads(run_script(given + SCRIPT, **surroundings))


@pytest.mark.parametrize("name", STEPS)
def test_nothing_of_the_logits_size_but_the_gradient(name, peaks):
    expected = STEPS[name][-1] * LOGITS
    assert expected - SLACK <= peaks[name] <= expected + SLACK


def test_the_reference_works_in_chunks(peaks):
    """Of 1 MiB, of which half a dozen live."""
    assert peaks["reference"] <= LOGITS + 8


def test_the_sum_of_both_apart_needs_another_gradient(peaks):
    assert peaks["added up by autograd"] >= 2 * LOGITS - SLACK
