"""The head with its loss: what the loss of its logits gives, and their gradients times weights."""

import pytest
import torch
from torch import nn

import anl_kernels as ak
from tests.balance.definitions import MODES, SOME, balance_of, balanced_by_formula
from tests.helpers import error
from tests.linear.heads import chunks_of, fused, logits_of, random_head, unfused

modes = pytest.mark.parametrize("mode", MODES)


def expected(head, terms, mode, row_scale, running=None):
    """Loss and gradients of hidden, weight and bias, by the formulas."""
    exact = head.to(torch.float64)
    logits = logits_of(*exact[:3]).reshape(-1, head.weight.shape[0])
    losses, grad = balanced_by_formula(
        logits, head.target.reshape(-1), terms, mode, row_scale, running
    )
    hidden = exact.hidden.reshape(-1, exact.hidden.shape[-1])
    of_hidden = (grad @ exact.weight).view(head.hidden.shape)
    return [losses.sum(), of_hidden, grad.t() @ hidden, grad.sum(0)]


@pytest.mark.parametrize("skip_ignored", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@modes
def test_values(mode, dtype, skip_ignored, quick, device, poisoned):
    """Recomputed in float64, in one pass otherwise; a chunk of rows at a time."""
    terms = SOME["mixed"]
    head = random_head(dtype=dtype, device=device).with_ignored(1, 5)
    balance = balance_of(mode, terms, 9, device, training=False)
    for reduction in ("mean", "none"):
        options = {"reduction": reduction, "skip_ignored": skip_ignored, **chunks_of(4, head)}
        loss, *grads = fused(head, terms, class_scale=balance, **options)
        scale = 1 / 9 if reduction == "mean" else 1.0
        value, *wanted = expected(head, terms, mode, scale, balance.running)
        slack = {torch.float64: 1e-12, torch.float32: 5e-6, torch.bfloat16: 0.05}[dtype]
        assert error(loss.sum(), value) <= slack
        for ours, theirs in zip(grads, wanted, strict=True):
            assert error(ours, theirs) <= slack


@modes
def test_weights_softcap_and_shapes(mode, quick, device):
    head = random_head((2, 5), device=device).with_ignored(1)
    options = {
        "class_scale": balance_of(mode, SOME["ANL-FL"], 9, device, training=False),
        "weight": torch.rand(9, dtype=torch.float64, device=device),
        "sample_weight": torch.rand(2, 5, dtype=torch.float64, device=device),
        "logit_softcap": 4.0,
    }
    for reduction in ("mean", "none"):
        ours = fused(head, SOME["ANL-FL"], reduction=reduction, **options)
        wanted = unfused(head, SOME["ANL-FL"], reduction=reduction, **options)
        for actual, theirs in zip(ours, wanted, strict=True):
            torch.testing.assert_close(actual, theirs)


@modes
def test_on_triton(mode, device):
    from tests.backends import running_on

    head = random_head((4,), device=device).with_ignored(1)
    options = {"class_scale": balance_of(mode, SOME["mixed"], 9, device, training=False)}
    with running_on("triton"):
        ours, wanted = (call(head, SOME["mixed"], **options) for call in (fused, unfused))
    for actual, theirs in zip(ours, wanted, strict=True):
        torch.testing.assert_close(actual, theirs)


@modes
def test_learned_weights(mode, quick, device):
    """Theirs are the plain gradients, in a frozen head too."""
    head = random_head(device=device).with_ignored(1)
    sample_weight = torch.rand(11, dtype=torch.float64, device=device)
    for frozen in (False, True):
        grads = []
        for scale in (1.0, balance_of(mode, 0.7 * ak.NCE() + ak.GCE(), 9, device)):
            alpha = torch.tensor(0.7, device=device, requires_grad=True)
            factors = sample_weight.clone().requires_grad_()
            own = head if frozen else head.leaves()
            loss = ak.linear_robust_loss(
                *own[:2],
                own.target,
                alpha * ak.NCE() + ak.GCE(),
                own.bias,
                sample_weight=factors,
                class_scale=scale,
            )
            grads.append(torch.autograd.grad(loss, (alpha, factors)))
        for ours, wanted in zip(*grads, strict=True):
            torch.testing.assert_close(ours, wanted)


@modes
def test_the_module(mode, quick, device):
    """It keeps its own running mean, as the loss of logits does."""
    torch.manual_seed(0)
    layer = nn.Linear(6, 9).double().to(device)
    fused_loss = ak.LinearRobustLoss(layer, SOME["ANL-CE"], class_scale=mode).to(device).double()
    plain = ak.RobustLoss(SOME["ANL-CE"], class_scale=mode).to(device).double()
    for _ in range(3):
        head = random_head(device=device).with_ignored(2)
        grads = []
        for value in (
            fused_loss(head.hidden, head.target),
            plain(layer(head.hidden), head.target),
        ):
            grads.append([value.detach(), *torch.autograd.grad(value, layer.parameters())])
        for ours, wanted in zip(*grads, strict=True):
            torch.testing.assert_close(ours, wanted)
    if mode == "running":
        assert sorted(fused_loss.state_dict()) == ["head.bias", "head.weight", "running_summands"]
        torch.testing.assert_close(fused_loss.running_summands, plain.running_summands)


@modes
def test_autocast(mode, device):
    head = random_head((11,), dtype=torch.float32, device=device)
    options = {"class_scale": balance_of(mode, SOME["ANL-CE"], 9, device, training=False)}
    with torch.autocast(device.type, dtype=torch.bfloat16):
        ours, wanted = (call(head, SOME["ANL-CE"], **options) for call in (fused, unfused))
    for actual, theirs in zip(ours, wanted, strict=True):
        assert actual.dtype == theirs.dtype
        assert error(actual, theirs) <= 0.02


@modes
def test_a_second_derivative(mode, quick, device):
    head = random_head((3,), device=device)
    options = {"class_scale": balance_of(mode, SOME["ANL-CE"], 9, device, training=False)}
    seconds = []
    for call in (
        ak.linear_robust_loss,
        lambda h, w, y, t, b, **o: ak.robust_loss(logits_of(h, w, b), y, t, **o),
    ):
        own = head.leaves()
        loss = call(*own[:2], own.target, SOME["ANL-CE"], own.bias, **options)
        grads = torch.autograd.grad(loss, own.parameters, create_graph=True)
        total = sum((grad**2).sum() for grad in grads)
        seconds.append(torch.autograd.grad(total, own.parameters))
    for ours, wanted in zip(*seconds, strict=True):
        torch.testing.assert_close(ours, wanted)
