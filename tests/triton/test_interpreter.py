import os
import subprocess
import sys

import pytest
import torch

from anl_kernels.backends.choice import why_not
from anl_kernels.settings import interpreting

pytestmark = pytest.mark.skipif(bool(why_not("triton")), reason=str(why_not("triton")))

VALUES = torch.cat(
    [
        torch.randn(200),
        torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 3.4e38, -3.4e38, 1e-40, -1e-45, 1.0]),
        1 + torch.arange(8) * 2.0**-8,  # ties
        1 + torch.arange(8) * 2.0**-8 + 2.0**-20,
        torch.arange(16) * 2.0**-133 * 0.5,  # denormals, and their ties
    ]
)


def cast(values, dtype):
    import triton
    import triton.language as tl

    from anl_kernels.backends.triton.structs import on_device

    @triton.jit
    def cast_kernel(X, Y, N, BLOCK: tl.constexpr):
        i = tl.arange(0, BLOCK)
        x = tl.load(X + i, mask=i < N)
        tl.store(Y + i, x.to(Y.dtype.element_ty), mask=i < N)

    device = "cpu" if interpreting() else "cuda"
    result = torch.empty(values.shape, dtype=dtype, device=device)
    with on_device(result):
        cast_kernel[(1,)](values.to(device), result, values.numel(), BLOCK=512)
    return result.cpu()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stores_round_to_nearest_even(dtype):
    assert torch.equal(cast(VALUES, dtype), VALUES.to(dtype))


def test_nan_stays_nan():
    assert cast(torch.tensor([torch.nan, -torch.nan]), torch.bfloat16).isnan().all()


def test_every_bfloat16_is_read_exactly():
    values = torch.arange(0, 1 << 16, 129, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    read = cast(values[:500], torch.float32)
    torch.testing.assert_close(read, values[:500].float(), rtol=0, atol=0, equal_nan=True)


def test_the_interpreter_runs_without_a_gpu():
    assert torch.cuda.is_available() or os.environ["TRITON_INTERPRET"] == "1"


@pytest.mark.skipif(not interpreting(), reason="on hardware there is nothing to mend")
def test_users_have_it_without_the_tests():
    """In a fresh process, which knows nothing of this test suite."""
    program = """
import numpy, torch, triton.language as tl, anl_kernels as ak
from triton.runtime import interpreter
before = interpreter._convert_float
numpy.seterr(all="raise")
z = torch.randn(8, 33, dtype=torch.bfloat16, requires_grad=True)
y = torch.arange(8)
with ak.use_backend("triton"):
    ak.robust_loss(z, y, ak.CE(), reduction="sum").backward()
wide = z.detach().float().requires_grad_()
with ak.use_backend("reference"):
    ak.robust_loss(wide, y, ak.CE(), reduction="sum").backward()
print((z.grad.float() - wide.grad).abs().div(wide.grad.abs()).max().item())
assert interpreter._convert_float is before
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) <= 2**-8  # half a unit in the last place; truncation makes a whole
