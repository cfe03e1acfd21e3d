"""The package's import is light, and whatever is used first brings what it needs."""

import os
import pickle
import subprocess
import sys

import pytest

import anl_kernels as ak

MODULES = {"noise", "presets", "recipes"}


def in_fresh_process(code, *args):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, *args], check=True, env=environment)


def test_the_table_has_every_public_name():
    assert {*ak._MODULES, *MODULES, "__version__"} == set(ak.__all__)
    assert set(ak.__all__) <= set(dir(ak))
    assert all(hasattr(ak, name) for name in ak.__all__)


@pytest.mark.parametrize("name", ["nothing", "_nothing", "__main__"])
def test_a_name_that_does_not_exist(name):
    with pytest.raises(AttributeError, match=f"'anl_kernels' has no attribute '{name}'"):
        getattr(ak, name)


def test_import_loads_nothing_heavy():
    module = ak.EntropyRegularisedLoss(ak.ActiveNegativeLoss(), weight=2.0)
    code = """
import pickle, sys, torch
before = set(sys.modules)
import anl_kernels
loaded = set(sys.modules) - before
assert loaded == {"anl_kernels", "anl_kernels._version"}, loaded
assert repr(pickle.loads(bytes.fromhex(sys.argv[1]))).startswith("EntropyRegularisedLoss")
from anl_kernels import *
log_prob(torch.randn(2, 3), torch.tensor([0, 1]))
heavy = {"triton", "sympy", "torch._dynamo", "torch._inductor", "torch.distributed.tensor"}
assert not heavy & (set(sys.modules) - before)
"""
    in_fresh_process(code, pickle.dumps(module).hex())


def test_the_first_use_of_a_name_may_be_in_compiled_code():
    in_fresh_process("""
import torch, anl_kernels as ak
z, w = torch.randn(4, 10, requires_grad=True), torch.randn(10, 10)
y = torch.tensor([0, 3, 9, -100])
for use in (
    lambda: ak.linear_robust_loss(z, w, y, ak.NCE()),
    lambda: ak.presets.anl_ce("cifar10")(z, y),
    lambda: ak.EntropyRegularisedLoss(ak.ActiveNegativeLoss(), 2.0)(z, y),
    lambda: ak.log_prob(z, y).sum(),
):
    loss = torch.compile(use, backend="aot_eager", fullgraph=True)()
    ours, = torch.autograd.grad(loss, z)
    torch.testing.assert_close(loss, use())
    torch.testing.assert_close(ours, torch.autograd.grad(use(), z)[0])
""")


def test_threads_may_use_a_backend_first_at_once():
    in_fresh_process("""
import threading, torch, anl_kernels as ak
made, start = [], threading.Barrier(4)
def use():
    start.wait()
    with ak.use_backend("reference"):
        made.append(ak.log_prob(torch.randn(2, 5), torch.tensor([[0, 1], [2, 3]])))
    made.append(ak.robust_loss(torch.randn(2, 5), torch.tensor([0, 1]), ak.NCE()))
threads = [threading.Thread(target=use) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert len(made) == 8
""")
