"""Losses of several labels in compiled code, under autocast, transforms and checkpoints."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import anl_kernels as ak
from tests.mixed.definitions import gradient

pytestmark = [
    pytest.mark.filterwarnings("ignore:There is a performance drop"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
TERMS = 5.0 * ak.NCE() + 5.0 * ak.NNCE(1e-3) + 1.0 * ak.CE(0.1)
KINDS = ("soft", "two", "smoothed")


def arguments(kind, num_rows=6, dtype=torch.float64):
    torch.manual_seed(0)
    first, second = (torch.randint(7, (num_rows,)) for _ in "ab")
    first[0] = -100
    if kind == "soft":
        return torch.rand(num_rows, 7).softmax(1), {}
    if kind == "two":
        return first, {"target_b": second, "lam": 0.3}
    return first, {"weight": torch.rand(7, dtype=dtype)}


@pytest.mark.parametrize("kind", KINDS)
def test_compiled(kind, swept):
    logits = torch.randn(6, 7, dtype=torch.float64)
    target, options = arguments(kind)

    def loss(z):
        return ak.robust_loss(z, target, TERMS, **options)

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradient(compiled, logits), gradient(loss, logits))


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_head(kind, swept):
    hidden = torch.randn(6, 4, dtype=torch.float64)
    weight = torch.randn(7, 4, dtype=torch.float64)
    target, options = arguments(kind)

    def loss(h):
        return ak.linear_robust_loss(h, weight, target, TERMS, **options)

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradient(compiled, hidden), gradient(loss, hidden))


@pytest.mark.parametrize("kind", KINDS)
def test_functorch(kind, swept, backend):
    logits = torch.randn(6, 7, dtype=torch.float64)
    target, options = arguments(kind)

    def loss(z):
        return ak.robust_loss(z, target, TERMS, **options)

    wanted = gradient(loss, logits)
    torch.testing.assert_close(torch.func.grad(loss)(logits), wanted[1])
    torch.testing.assert_close(
        torch.func.jacrev(torch.func.jacrev(loss))(logits),
        torch.autograd.functional.hessian(loss, logits),
    )


@pytest.mark.parametrize("kind", ["soft", "two"])
def test_vmap(kind, swept):
    logits = torch.randn(6, 7, dtype=torch.float64)
    target, options = arguments(kind)
    others = tuple(value for value in options.values() if isinstance(value, torch.Tensor))

    def loss(z, y, *second):
        given = {"target_b": second[0], "lam": 0.3} if second else {}
        return ak.robust_loss(z, y, TERMS, reduction="sum", **given)

    made = torch.func.vmap(torch.func.grad(loss))(logits, target, *others)
    wanted = gradient(
        lambda z: ak.robust_loss(z, target, TERMS, reduction="sum", **options), logits
    )
    torch.testing.assert_close(made, wanted[1])


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoint(kind, swept):
    logits = torch.randn(6, 7)
    target, options = arguments(kind, dtype=torch.float32)

    def loss(z):
        return ak.robust_loss(2 * z, target, TERMS, **options)

    again = gradient(lambda z: checkpoint(loss, z, use_reentrant=False), logits)
    torch.testing.assert_close(again, gradient(loss, logits))


def test_autocast(swept):
    hidden = torch.randn(6, 4)
    head = torch.nn.Linear(4, 7)
    target, _ = arguments("soft")
    criterion = ak.LinearRobustLoss(head, ak.CE())
    with torch.autocast("cpu", torch.bfloat16):
        apart = ak.robust_loss(head(hidden), target, ak.CE())
        fused = criterion(hidden, target)
    torch.testing.assert_close(apart, fused, rtol=1e-2, atol=1e-2)
    fused.backward()
    assert head.weight.grad.dtype == torch.float32


def test_no_gradient_without_need(swept, backend):
    target, _ = arguments("soft")
    assert not ak.robust_loss(torch.randn(6, 7), target, ak.CE()).requires_grad
    with torch.no_grad():
        logits = torch.randn(6, 7, requires_grad=True)
        assert not ak.robust_loss(logits, target, ak.CE()).requires_grad
