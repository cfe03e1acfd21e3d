"""Runs tests on a backend, or skips them."""

from contextlib import contextmanager

import pytest
import torch

import anl_kernels as ak
from anl_kernels.backends.selection import why_not
from tests.cuda import emulated


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
