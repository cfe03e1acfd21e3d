"""Errors against float64, held to those of PyTorch at the same dtype on the same input.

In 16 bits nearly all of an error is the rounding of the logits, PyTorch's own and the same for all,
and what follows from it is luck. So the truth is that of the rounded logits. Its gradients are at
best rounded twice, as the logits' and as the parameters'; nobody has to be better than that.
"""

import math

import pytest
import torch

import anl_kernels as ak
from tests.cases import CASES, KINDS, over
from tests.formulas import evaluate
from tests.helpers import error
from tests.linear.heads import (
    chunks_of,
    fused,
    fused_loss,
    logits_of,
    random_head,
    with_gradients,
)

EPSILON = 2e-6  # some thirty roundings of float32, as in tests/test_accuracy.py
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# NCE's gradients have no digits in float16 without a GradScaler.
SCALE = {torch.float16: 1024.0}


def formula(head, terms, logit_softcap=None):
    return evaluate(terms, logits_of(*head[:3], logit_softcap), head.target).mean()


def losses(head, terms, **options):
    return fused_loss(head, terms, reduction="none", **options)


class _Rounded(torch.autograd.Function):
    """A value in the place of another, of which it is the rounding."""

    @staticmethod
    def forward(ctx, exact, value):
        return value.double()

    @staticmethod
    def backward(ctx, grad):
        return grad, None


class _RoundedGradient(torch.autograd.Function):
    """Hands through; the gradient is rounded to a dtype."""

    @staticmethod
    def forward(ctx, exact, dtype):
        ctx.dtype = dtype
        return exact.view_as(exact)

    @staticmethod
    def backward(ctx, grad):
        return grad.to(ctx.dtype).double(), None


def of_rounded_logits(narrow, terms, softcap, rounded):
    """A function of the head in float64, of which ``narrow`` is the rounding: the truth.

    With ``rounded`` its gradients are rounded where PyTorch's own products would at best be.
    """

    def loss(head):
        logits, dtype = logits_of(*head[:3]), narrow.hidden.dtype
        if rounded:
            logits = _RoundedGradient.apply(logits, dtype)
        logits = _Rounded.apply(logits, logits_of(*narrow[:3]))
        if softcap:
            logits = softcap * torch.tanh(logits / softcap)
            if rounded:
                logits = _RoundedGradient.apply(logits, dtype)
            logits = _Rounded.apply(logits, logits_of(*narrow[:3], softcap))
        return evaluate(terms, logits, narrow.target)

    return loss


def truth_of(head, terms, softcap, upstream, rounded=False):
    loss = of_rounded_logits(head, terms, softcap, rounded)
    row_losses, *grads = with_gradients(loss, head.to(torch.float64), upstream=upstream)
    if rounded:
        grads = [grad.to(head.hidden.dtype) for grad in grads]
    return [row_losses, *grads]


def assert_no_worse(head, terms, softcap):
    dtype, num_rows = head.hidden.dtype, len(head.target)
    rows = torch.ones_like(head.target, dtype=torch.float64) * SCALE.get(dtype, 1.0) / num_rows
    upstream, options = rows.sum(), {"logit_softcap": softcap}
    truth = truth_of(head, terms, softcap, rows)
    best = truth_of(head, terms, softcap, rows, rounded=True)
    eager = with_gradients(formula, head, terms, upstream=upstream.to(dtype), **options)
    ours = fused(head, terms, upstream=upstream.float(), **options)
    ours[0] = losses(head, terms, **options)
    assert error(ours[0], truth[0]) <= EPSILON
    for i in (1, 2, 3):
        errors = [error(made[i], truth[i]) for made in (eager, best)]
        bound = max(filter(math.isfinite, errors))  # GCE overflows in eager float16
        assert error(ours[i], truth[i]) <= bound + EPSILON


@pytest.mark.parametrize("softcap", [None, 20.0])
@pytest.mark.parametrize("dtype", DTYPES)
@over(KINDS)
def test_no_worse_than_pytorch(terms, dtype, softcap, quick, device):
    assert_no_worse(random_head((64,), 32, 300, dtype, device), terms, softcap)


@pytest.mark.parametrize("dtype", DTYPES)
@over(("GCE", "ANL-CE"))
def test_no_worse_than_pytorch_on_triton(terms, dtype, triton_backend, device):
    assert_no_worse(random_head((16,), 16, 40, dtype, device), terms, None)


@pytest.mark.parametrize("rows", [3, 16])
@pytest.mark.parametrize("dtype", DTYPES)
@over(KINDS)
def test_chunks_cost_a_rounding_at_most(terms, dtype, rows, quick, device):
    """Products for the weight are rounded on a CPU; others may be summed up in another order."""
    head = random_head((64,), 32, 300, dtype, device)
    upstream = torch.tensor(SCALE.get(dtype, 1.0), device=device)
    whole = fused(head, terms, upstream=upstream)
    made = fused(head, terms, upstream=upstream, **chunks_of(rows, head))
    for ours, wanted, roundings in zip(made, whole, (0, 1 / 8, 1, 1 / 8), strict=True):
        assert error(ours, wanted) <= roundings * torch.finfo(dtype).eps + EPSILON


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_wide_sums_are_closer_to_the_truth(dtype, quick, device):
    head = random_head((64,), 16, 40, dtype, device)
    truth = truth_of(head, CASES["CE"], None, torch.ones(64, dtype=torch.float64, device=device))

    def errors(accum_dtype):
        options = {"accum_dtype": accum_dtype, "reduction": "sum"} | chunks_of(2, head)
        made = fused(head, CASES["CE"], **options)
        return [error(made[i], truth[i]) for i in (2, 3)]

    wide, narrow = errors(torch.float32), errors(dtype)
    assert errors(None) == wide
    assert all(2 * w < n for w, n in zip(wide, narrow, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_one_chunk_has_nothing_to_sum(dtype, quick, device):
    head = random_head(dtype=dtype, device=device)
    by_weight = [fused(head, CASES["CE"], accum_dtype=wanted)[2] for wanted in (None, dtype)]
    assert torch.equal(*by_weight)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_of_results(dtype, reduction, backend, device):
    head = random_head(dtype=dtype, device=device)
    loss, *grads = fused(head, CASES["ANL-CE"], reduction=reduction, **chunks_of(4, head))
    assert loss.dtype == torch.float32
    assert all(grad.dtype == dtype for grad in grads)


@over(("NCE", "NNCE", "ANL-CE", "NFL"))
def test_float16_gradients_survive_a_grad_scaler(terms, quick, device):
    """At 4096 classes a gradient of NCE is below float16's smallest number until it is scaled."""
    head = random_head((16,), 16, 4096, torch.float16, device, scale=1.0)
    truth = fused(head.to(torch.float64), terms)[1:]
    rounding = torch.finfo(torch.float16).eps / 2
    scaled = fused(head, terms, upstream=torch.tensor(2.0**16, device=device))[1:]
    unscaled = fused(head, terms)[1:]
    for ours, lost, wanted in zip(scaled, unscaled, truth, strict=True):
        assert error(ours.double() / 2**16, wanted) <= rounding
        assert error(lost, wanted) > 20 * rounding


@pytest.mark.parametrize("factor", [0.25, 1024.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_upstream_gradients_cost_a_rounding_at_most(dtype, factor, quick, device):
    head = random_head((32,), 16, 40, dtype, device)
    _, *plain = fused(head, CASES["ANL-CE"], reduction="sum")
    _, *scaled = fused(
        head, CASES["ANL-CE"], reduction="sum", upstream=torch.tensor(factor, device=device)
    )
    for ours, wanted in zip(scaled, plain, strict=True):
        assert error(ours, factor * wanted.double()) <= torch.finfo(dtype).eps


def test_an_offset_common_to_all_logits_costs_no_digits(quick, device):
    head = random_head((32,), dtype=torch.float32, device=device)
    shifted = head._replace(bias=head.bias + 64.0)
    wanted = ak.robust_loss(logits_of(*shifted[:3]), head.target, CASES["ANL-CE"])
    torch.testing.assert_close(fused_loss(shifted, CASES["ANL-CE"]), wanted, rtol=1e-6, atol=0)
