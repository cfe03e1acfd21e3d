import os

import pytest
import torch

from anl_kernels.backends.selection import interpreting, why_not

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

    @triton.jit
    def cast_kernel(X, Y, N, BLOCK: tl.constexpr):
        i = tl.arange(0, BLOCK)
        x = tl.load(X + i, mask=i < N)
        tl.store(Y + i, x.to(Y.dtype.element_ty), mask=i < N)

    device = "cpu" if interpreting() else "cuda"
    result = torch.empty(values.shape, dtype=dtype, device=device)
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
