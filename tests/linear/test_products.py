"""The head's products over chunks, without losses."""

import pytest
import torch

from anl_kernels.linear import products
from anl_kernels.linear.chunks import Chunk
from anl_kernels.linear.products import HiddenGradient, Projector, WeightGradient
from tests.helpers import error
from tests.linear.heads import logits_of, random_head

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]

pytestmark = pytest.mark.usefixtures("poisoned")


def chunks(rows=11, each=4):
    return [Chunk(slice(i, min(i + each, rows))) for i in range(0, rows, each)]


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("softcap", [0.0, 5.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_are_those_of_pytorch(dtype, softcap, bias, keep, device):
    states, weight, offsets, _ = random_head(dtype=dtype, bias=bias, device=device)
    out = torch.empty(11, 9, dtype=dtype, device=device)
    tanh = torch.empty_like(out) if keep and softcap else None
    made = Projector(weight, offsets, softcap, dtype).logits(states, out, tanh)
    assert made is out
    assert error(made, logits_of(states, weight, offsets, softcap)) <= torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_softcaps_gradient_is_that_of_pytorch(dtype, device):
    states, weight, _, _ = random_head(dtype=dtype, bias=False, device=device)
    before = (states @ weight.t()).requires_grad_()
    upstream = torch.randn_like(before)
    (wanted,) = torch.autograd.grad(5 * torch.tanh(before / 5), before, upstream)
    projector = Projector(weight, None, 5.0, dtype)
    out, tanh = torch.empty_like(before), torch.empty_like(before)
    projector.logits(states, out.detach(), tanh.detach())
    grad = upstream.clone()
    projector.before_softcap_(grad, tanh.detach())
    # PyTorch multiplies by 5 and divides by 5 besides, and rounds.
    assert error(grad, wanted) <= 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("rows", [None, [0, 3, 4]])
@pytest.mark.parametrize("states", [torch.float32, torch.bfloat16])
def test_hidden_gradients(states, rows, device):
    hidden = torch.randn(5, 3, device=device, dtype=states)
    weight = torch.randn(7, 3, device=device, dtype=torch.bfloat16)
    grad = torch.randn(5, 7, device=device, dtype=torch.bfloat16)
    chunk = Chunk(slice(0, 5) if rows is None else torch.tensor(rows, device=device))
    made = HiddenGradient(hidden, all_rows=rows is None)
    made.add(chunk, chunk.of(grad), weight)
    wanted = torch.zeros_like(hidden)
    chunk.put(wanted, (chunk.of(grad) @ weight).to(states))
    assert torch.equal(made.result, wanted)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_weight_gradients_add_up(dtype, padding, wide, device):
    grad = torch.randn(11, 9, device=device, dtype=torch.float64).to(dtype)
    hidden = torch.randn(11, 6, device=device, dtype=torch.float64).to(dtype)
    sum_dtype = torch.float32 if wide and dtype != torch.float64 else dtype
    made = WeightGradient(torch.empty(9 + padding, 6, dtype=sum_dtype, device=device), 9)
    for chunk in chunks():
        made.add(chunk.of(grad), chunk.of(hidden))
    result = made.finish(dtype)
    assert result.dtype == dtype
    assert not result[9:].any()
    assert error(result[:9], grad.double().t() @ hidden.double()) <= torch.finfo(dtype).eps


def test_nothing_adds_up_to_zero(device):
    made = WeightGradient(torch.empty(9, 6, device=device), 7).finish(torch.bfloat16)
    assert torch.equal(made, torch.zeros(9, 6, device=device, dtype=torch.bfloat16))


@pytest.mark.parametrize("classes", [1, 4, 9])
def test_blocks_of_classes_change_nothing(classes, device, monkeypatch):
    hidden = torch.randn(11, 6, device=device, dtype=torch.bfloat16)
    grad = torch.randn(11, 9, device=device, dtype=torch.bfloat16)

    def added():
        made = WeightGradient(torch.empty(9, 6, device=device), 9)
        for chunk in chunks():
            made.add(chunk.of(grad), chunk.of(hidden))
        return made.finish(torch.float32)

    whole = added()
    monkeypatch.setattr(products, "_BLOCK_BYTES", classes * 6 * 2)
    assert error(added(), whole) <= torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("width", [1, 6, 4096])
def test_a_block_is_small_beside_a_chunk(width, monkeypatch):
    monkeypatch.setattr(products, "_BLOCK_BYTES", 1000)
    grad, hidden = torch.ones(3, 700).bfloat16(), torch.ones(3, width).bfloat16()
    result = torch.zeros(700, width)
    blocks = list(products._blocks(result, grad, hidden))
    assert all(block.nbytes <= max(1000, 2 * width) for _, block in blocks)
    for rows, block in blocks:
        rows.add_(block)
    assert (result == 3).all()
