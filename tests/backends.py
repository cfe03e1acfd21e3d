"""Runs tests on a backend, or skips them."""

from contextlib import contextmanager

import pytest
import torch

import anl_kernels as ak
from anl_kernels.backends import choice
from anl_kernels.backends.choice import why_not
from anl_kernels.rows import plain
from tests.cuda import emulated


def forget():
    """What was found out of this machine, which a test changes."""
    for name in ("extension", "why_not", "best", "_capability"):
        getattr(choice, name).cache_clear()
    plain._sum_of.cache_clear()  # sums of one term, which keep what serves their calls


def operators_of(function, *args):
    """The operators of backends that a call runs in this thread, such as "cpu::row_loss"."""
    with torch.autograd.profiler.profile() as seen:
        function(*args)
    names = [event.name for event in seen.function_events]
    return [n.removeprefix("anl_kernels_") for n in names if n.startswith("anl_kernels_")]


@contextmanager
def running_on(name):
    """Every call runs on this backend; a skip where it, or its device, is not."""
    if name == "cuda" and emulated.error:
        pytest.fail(emulated.error, pytrace=False)
    reason = (name == "cuda" and emulated.reason) or why_not(name)
    if reason:
        pytest.skip(reason)
    if name == "cpu" and torch.cuda.is_available():
        pytest.skip("the tests' tensors are on the GPU")
    with ak.use_backend(name):
        yield name
