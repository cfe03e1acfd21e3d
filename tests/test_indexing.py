"""Offsets beyond 2^31 elements, in storage of which only a few pages are ever touched."""

import mmap

import pytest
import torch

import anl_kernels as ak
from tests.cases import CASES
from tests.forms import FORMS, forced
from tests.helpers import loss_and_grad

BEYOND = (1 << 31) + 12

STRIDES = {
    "rows": ((3, 5), (BEYOND, 1)),
    "classes": ((2, 4), (1, BEYOND)),
    "negative-int32": ((2, 4), (1, 3 << 30)),
    "positions": ((1, 5, 3), (1, 1, BEYOND)),
    "batch": ((3, 5, 2), (BEYOND, 2, 1)),
}


def sparse(shape, stride, dtype, device):
    """A zero tensor whose untouched pages cost nothing."""
    if device.type != "cpu":
        pytest.skip("a GPU commits its memory")
    last = sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
    size = (last + 1) * dtype.itemsize
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
    except (OSError, ValueError) as error:
        pytest.skip(f"no {size >> 30} GiB of address space: {error}")
    storage = torch.frombuffer(memory, dtype=dtype).untyped_storage()
    return torch.empty(0, dtype=dtype).set_(storage, 0, shape, stride)


def problem(name, dtype, device):
    shape, stride = STRIDES[name]
    values = torch.randn(shape, device=device).to(dtype)
    logits = sparse(shape, stride, dtype, device)
    logits.copy_(values)
    target = torch.randint(shape[1], shape[:1] + shape[2:], device=device)
    return logits, values, target


def assert_same(ours, wanted):
    for actual, value in zip(ours, wanted, strict=True):
        torch.testing.assert_close(actual, value, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("form", FORMS, ids="-".join)
@pytest.mark.parametrize("name", STRIDES)
def test_logits_far_apart(name, form, device, monkeypatch):
    logits, values, target = problem(name, torch.bfloat16, device)
    terms = CASES["ANL-CE"]
    with forced(*form, monkeypatch):
        for reduction in ("mean", "none"):
            ours = loss_and_grad(logits, target, terms, reduction=reduction)
            assert_same(ours, loss_and_grad(values, target, terms, reduction=reduction))


@pytest.mark.parametrize("form", FORMS, ids="-".join)
@pytest.mark.parametrize("name", STRIDES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_far_apart(dtype, name, form, device, monkeypatch):
    """In place, the gradient is as far apart as the logits; float16 takes the recompute form."""
    logits, values, target = problem(name, dtype, device)
    terms = CASES["ANL-CE"]
    with forced(*form, monkeypatch):
        _, wanted = loss_and_grad(values, target, terms)
        logits.copy_(values.requires_grad_())
        loss = ak.robust_loss(logits, target, terms, inplace=True)
        (grad,) = torch.autograd.grad(loss, logits)
    assert grad.data_ptr() == logits.data_ptr()
    assert_same((grad,), (wanted,))


@pytest.mark.parametrize("form", FORMS, ids="-".join)
def test_softmax_far_apart(form, device, monkeypatch):
    logits, values, _ = problem("rows", torch.bfloat16, device)
    with forced(*form, monkeypatch):
        assert torch.equal(ak.softmax(logits), ak.softmax(values))


@pytest.mark.parametrize("form", FORMS, ids="-".join)
@pytest.mark.parametrize("name", STRIDES)
def test_entropy_regulariser_far_apart(name, form, device, monkeypatch):
    logits, values, _ = problem(name, torch.bfloat16, device)
    with forced(*form, monkeypatch):
        gradients = []
        for z in (logits, values):
            value = ak.entropy_regulariser(z.requires_grad_(), min_prob=1e-3)
            gradients.append(torch.autograd.grad(value, z)[0])
    assert_same(*gradients)
