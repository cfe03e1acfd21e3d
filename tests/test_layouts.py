"""Any strides: right values, no copy, nothing written but the outputs, all of them written."""

import pytest
import torch

import anl_kernels as ak
from anl_kernels.layout import as_rows
from tests.cases import CASES, over
from tests.helpers import error, expected, loss_and_grad

K = 6


def channels_last(z):
    return z.contiguous(memory_format=torch.channels_last)


def padded(z):
    return torch.nn.functional.pad(z, (1, 2))[..., 1:-2]


def doubled(z, dim):
    return torch.repeat_interleave(z, 2, dim).narrow(dim, 1, 2 * z.shape[dim] - 1).unfold(dim, 1, 2)


LAYOUTS = {
    "contiguous": lambda: torch.randn(5, K),
    "one-row": lambda: torch.randn(2 * K)[::2],
    "transposed": lambda: torch.randn(K, 5).t(),
    "rows-sliced": lambda: torch.randn(10, K)[::2],
    "columns-sliced": lambda: torch.randn(5, 3 * K)[:, K : 2 * K],
    "columns-strided": lambda: torch.randn(5, 3 * K)[:, ::3],
    "rows-expanded": lambda: torch.randn(1, K).expand(5, K),
    "classes-expanded": lambda: torch.randn(5, 1).expand(5, K),
    "offset": lambda: torch.randn(5 * K + 1)[1:].view(5, K),
    "3d": lambda: torch.randn(2, K, 5),
    "3d-classes-last": lambda: torch.randn(2, 5, K).movedim(-1, 1),
    "3d-padded": lambda: torch.randn(2, K, 8)[:, :, 1:6],
    "3d-classes-sliced": lambda: torch.randn(2, 2 * K, 5)[:, ::2],
    "4d": lambda: torch.randn(2, K, 3, 4),
    "channels_last": lambda: channels_last(torch.randn(2, K, 3, 4)),
    "channels_last-sliced": lambda: channels_last(torch.randn(4, K, 3, 4))[::2],
    "5d": lambda: torch.randn(2, K, 2, 3, 2),
    "4d-batch-expanded": lambda: torch.randn(1, K, 3, 4).expand(2, K, 3, 4),
}

# d1 and d2 cannot be walked with one stride: the one place where a copy is allowed.
# "4d-transposed" fails on Triton: empty_like keeps its strides, as_rows copies the empty gradient,
# and what the kernel writes is lost.
NOT_COLLAPSIBLE = {
    "4d-window": lambda: torch.randn(2, K, 5, 6)[:, :, 1:4, 1:5],
    "4d-transposed": lambda: torch.randn(2, K, 4, 3).transpose(2, 3),
    "4d-width-expanded": lambda: torch.randn(2, K, 3, 1).expand(2, K, 3, 4),
}

ALL = LAYOUTS | NOT_COLLAPSIBLE


def make(layout, device, dtype):
    logits = ALL[layout]().to(dtype)
    on_device = torch.empty_strided(logits.shape, logits.stride(), dtype=dtype, device=device)
    on_device.copy_(logits) if 0 not in logits.stride() else None
    return on_device if 0 not in logits.stride() else logits.to(device)


def labels_for(logits):
    batch = logits.shape[:1] + logits.shape[2:] if logits.dim() > 1 else ()
    target = torch.randint(K, batch, device=logits.device)
    if batch:
        target.view(-1)[-1] = -100
    return target


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_are_a_view(layout, device):
    logits = make(layout, device, torch.float32)
    view = as_rows(logits).tensor
    assert view.untyped_storage().data_ptr() == logits.untyped_storage().data_ptr()
    B, classes, M = view.shape
    assert classes == K
    assert logits.numel() == B * M * K


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("layout", ALL)
def test_values(layout, reduction, dtype, backend, device, poisoned):
    logits = make(layout, device, dtype)
    terms, target = CASES["ANL-CE"], labels_for(logits)
    counted = target != -100
    losses, grad = expected(logits.double(), target.clamp(min=0), terms, counted.double())
    before = logits.clone()

    loss, ours = loss_and_grad(logits, target, terms, reduction=reduction)

    losses = losses * counted
    assert error(loss, losses.sum() if reduction == "sum" else losses) <= 1e-6
    assert error(ours, grad) <= max(1e-6, torch.finfo(dtype).eps)
    assert ours.shape == logits.shape
    assert torch.equal(logits, before)
    again, ours_again = loss_and_grad(logits, target, terms, reduction=reduction)
    assert torch.equal(loss, again)
    assert torch.equal(ours, ours_again)


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "4d", "4d-transposed"])
@over(("CE", "CE-smoothed", "GCE", "AMSE", "ZLoss", "NNFL-2", "all"))
def test_values_of_terms(terms, layout, backend, device, poisoned):
    logits = make(layout, device, torch.float32)
    target = labels_for(logits).clamp(min=0)
    losses, grad = expected(logits.double(), target, terms)
    loss, ours = loss_and_grad(logits, target, terms, reduction="none")
    assert error(loss, losses) <= 1e-6
    assert error(ours, grad) <= 1e-6


@pytest.mark.parametrize("layout", ALL)
def test_aux(layout, backend, device, poisoned):
    logits = make(layout, device, torch.float32)
    target = labels_for(logits)
    wanted = ("term_losses", "lse", "p_y", "argmax", "probs")
    _, aux = ak.robust_loss(logits, target, CASES["ANL-CE"], return_aux=wanted)
    dim = min(1, logits.dim() - 1)
    torch.testing.assert_close(aux.probs, logits.softmax(dim))
    counted = target != -100
    torch.testing.assert_close(aux.lse[counted], logits.logsumexp(dim)[counted])
    assert torch.equal(aux.argmax[counted], logits.argmax(dim)[counted])
    assert aux.term_losses.isfinite().all()
    assert aux.p_y.isfinite().all()


@pytest.mark.parametrize("layout", ALL)
def test_softmax(layout, backend, device, poisoned):
    logits = make(layout, device, torch.float32).requires_grad_()
    dim = min(1, logits.dim() - 1)
    probs, wanted = ak.softmax(logits, dim), logits.softmax(dim)
    up = torch.randn_like(wanted)
    (grad,) = torch.autograd.grad(probs, logits, up)
    (by_torch,) = torch.autograd.grad(wanted, logits, up)
    torch.testing.assert_close(probs, wanted)
    torch.testing.assert_close(grad, by_torch)


@pytest.mark.parametrize("layout", ALL)
def test_strides_of_the_upstream_gradient(layout, backend, device, poisoned):
    """What softmax is given in its backward pass has any strides too."""
    logits = torch.randn(make(layout, device, torch.float32).shape, device=device)
    logits.requires_grad_()
    dim = min(1, logits.dim() - 1)
    up = make(layout, device, torch.float32)
    (grad,) = torch.autograd.grad(ak.softmax(logits, dim), logits, up)
    (by_torch,) = torch.autograd.grad(logits.softmax(dim), logits, up)
    torch.testing.assert_close(grad, by_torch)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_strided_labels_and_weights(reduction, backend, device):
    logits = torch.randn(4, K, 3, device=device)
    target = torch.randint(K, (3, 4), device=device).t()
    weight = torch.rand(2 * K, device=device)[::2]
    sample_weight = torch.rand(4, 1, device=device).expand(4, 3)
    given = {"weight": weight, "sample_weight": sample_weight}
    copies = {name: value.clone() for name, value in given.items()}
    for ours, wanted in zip(
        loss_and_grad(logits, target, ak.NCE(), reduction=reduction, **given),
        loss_and_grad(logits, target.contiguous(), ak.NCE(), reduction=reduction, **copies),
        strict=True,
    ):
        assert torch.equal(ours, wanted)


def test_layouts_keep_their_storage(device):
    """The table's strides reach the tests, on every device."""
    for layout in ALL:
        assert make(layout, device, torch.float32).stride() == ALL[layout]().stride()
