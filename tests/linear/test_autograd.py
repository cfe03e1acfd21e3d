"""What autograd asks of the Function: derivatives of every order, graphs kept and walked twice."""

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

import anl_kernels as ak
from tests.cases import CASES, KINDS, is_detached, over
from tests.helpers import error
from tests.linear.heads import (
    assert_like,
    chunks_of,
    fused,
    fused_loss,
    random_head,
    unfused,
    unfused_loss,
)

TERMS = CASES["ANL-CE"]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
REDUCTIONS = ("mean", "none")


def small(device, classes=4):
    return random_head((3,), 2, classes, device=device, scale=2.0).with_ignored(1)


def function_of_leaves(head, terms, **options):
    def loss(hidden, weight, bias):
        parts = head._replace(hidden=hidden, weight=weight, bias=bias)
        return fused_loss(parts, terms, **options, **chunks_of(2, head))

    return loss, head.leaves().parameters


@pytest.mark.parametrize(("reduction", "softcap"), [("none", None), ("mean", 3.0)])
@over(KINDS)
def test_gradcheck(terms, reduction, softcap, quick, device):
    options = {"reduction": reduction, "logit_softcap": softcap}
    loss, leaves = function_of_leaves(small(device), terms, **options)
    assert gradcheck(loss, leaves, fast_mode=True)


@pytest.mark.parametrize(("reduction", "softcap"), [("mean", None), ("none", 3.0)])
@over(KINDS)
def test_gradgradcheck(terms, reduction, softcap, quick, device):
    options = {"reduction": reduction, "logit_softcap": softcap}
    loss, leaves = function_of_leaves(small(device), terms, **options)
    assert gradgradcheck(loss, leaves, fast_mode=True)


def test_gradcheck_on_triton(triton_backend, device):
    loss, leaves = function_of_leaves(small(device), TERMS)
    assert gradcheck(loss, leaves, fast_mode=True)


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_gradgradcheck_with_a_frozen_tensor(frozen, quick, device):
    loss, leaves = function_of_leaves(small(device), TERMS)
    leaves[frozen].requires_grad_(False)
    assert gradcheck(loss, leaves, fast_mode=True)
    assert gradgradcheck(loss, leaves, fast_mode=True)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck_of_factors(reduction, quick, device):
    head = small(device)
    factors = torch.rand(3, dtype=torch.float64, device=device, requires_grad=True)
    alpha = torch.tensor(2.0, dtype=torch.float64, device=device, requires_grad=True)

    def loss(hidden, weight, factors, alpha):
        parts = head._replace(hidden=hidden, weight=weight, bias=None)
        terms = alpha * ak.NCE() + 3.0 * ak.MAE()
        return fused_loss(parts, terms, sample_weight=factors, reduction=reduction)

    inputs = (*head.leaves().parameters[:2], factors, alpha)
    assert gradcheck(loss, inputs, fast_mode=True)
    assert gradgradcheck(loss, inputs, fast_mode=True)


def second_gradients(loss_of, head, terms, **options):
    head = head.leaves()
    loss = loss_of(head, terms, **options)
    grads = torch.autograd.grad(loss.sum(), head.parameters, create_graph=True)
    penalty = sum(grad.square().sum() for grad in grads)
    return torch.autograd.grad(penalty, head.parameters)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@over(where=is_detached)
def test_second_gradients_of_detached_factors(terms, reduction, quick, device):
    head, options = random_head((3,), device=device), {"reduction": reduction}
    ours = second_gradients(fused_loss, head, terms, **options)
    assert_like(ours, second_gradients(unfused_loss, head, terms, **options), 1e-10)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_second_gradients_of_the_one_pass_form(dtype, reduction, quick, device):
    head, options = random_head((5,), dtype=dtype, device=device), {"reduction": reduction}
    ours = second_gradients(fused_loss, head, TERMS, **options)
    theirs = second_gradients(unfused_loss, head, TERMS, **options)
    for actual, wanted in zip(ours, theirs, strict=True):
        assert error(actual, wanted) <= torch.finfo(dtype).eps


def test_third_derivatives(device):
    head = small(device).leaves()
    with ak.use_backend("reference"):
        made = fused_loss(head, TERMS)
    for _ in range(3):
        grads = torch.autograd.grad(made, head.parameters, create_graph=True)
        made = sum(grad.square().sum() for grad in grads)
    assert made.isfinite()


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_tied_embeddings(dtype, create_graph, quick, device):
    """Hidden states that are a function of the head's weight."""
    head = random_head(dtype=dtype, device=device, bias=False)
    gradients = []
    for loss_of in (fused_loss, unfused_loss):
        weight = head.weight.clone().requires_grad_()
        hidden = torch.tanh(weight[head.target - 1])
        loss = loss_of(head._replace(hidden=hidden, weight=weight), TERMS)
        gradients.append(torch.autograd.grad(loss, weight, create_graph=create_graph)[0])
    assert error(*gradients) <= (1e-13 if dtype == torch.float64 else 2e-6)


@pytest.mark.parametrize("upstream", [1.0, -3.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_retain_graph_gives_the_same_bits(dtype, upstream, quick, device):
    head = random_head(dtype=dtype, device=device).with_ignored(2).leaves()
    loss = upstream * fused_loss(head, TERMS, **chunks_of(4, head))
    backward = lambda: torch.autograd.grad(loss, head.parameters, retain_graph=True)  # noqa: E731
    first, second, third = backward(), backward(), backward()
    assert all(map(torch.equal, first, second))
    assert all(map(torch.equal, second, third))


def test_what_a_backward_pass_gave_is_the_callers(quick, device):
    head = random_head(dtype=torch.float32, device=device).leaves()
    loss = fused_loss(head, TERMS)
    first = torch.autograd.grad(loss, head.parameters, retain_graph=True)
    wanted = [grad.clone() for grad in first]
    for grad in first:
        grad.zero_()
    assert all(map(torch.equal, torch.autograd.grad(loss, head.parameters), wanted))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradients_are_not_cloned(reduction, quick, device, monkeypatch):
    from anl_kernels.linear.autograd import LinearLossFunction

    written, backward = [], LinearLossFunction.backward

    def spy(ctx, *grads):
        made = backward(ctx, *grads)
        written.extend(grad.data_ptr() for grad in made[:3])
        return made

    monkeypatch.setattr(LinearLossFunction, "backward", staticmethod(spy))
    head = random_head(dtype=torch.float32, device=device).leaves()
    fused_loss(head, TERMS, reduction=reduction).sum().backward()
    assert [tensor.grad.data_ptr() for tensor in head.parameters] == written


def test_gradients_accumulate(backend, device):
    head = random_head(device=device)
    _, *wanted = fused(head, TERMS)
    head = head.leaves()
    for _ in range(4):
        (fused_loss(head, TERMS) / 4).backward()
    assert_like([tensor.grad for tensor in head.parameters], wanted)


def test_two_losses_of_one_head(quick, device):
    head = random_head(device=device).leaves()
    loss = fused_loss(head, ak.NCE()) + 2 * fused_loss(head, ak.MAE())
    wanted = fused(head, ak.NCE() + 2.0 * ak.MAE())[1:]
    assert_like(torch.autograd.grad(loss, head.parameters), wanted)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_activation_checkpointing(dtype, reduction, use_reentrant, quick, device):
    head = random_head(dtype=dtype, device=device)
    _, *wanted = fused(head, TERMS, reduction=reduction)
    head = head.leaves()

    def loss(hidden, weight, bias):
        parts = head._replace(hidden=hidden * 1, weight=weight, bias=bias)
        return fused_loss(parts, TERMS, reduction=reduction).sum()

    checkpoint(loss, *head.parameters, use_reentrant=use_reentrant).backward()
    assert_like([tensor.grad for tensor in head.parameters], wanted, 1e-6)


def test_saved_tensor_hooks(quick, device):
    head = random_head(device=device)
    _, *wanted = fused(head, TERMS)
    head = head.leaves()
    with torch.autograd.graph.save_on_cpu():
        loss = fused_loss(head, TERMS)
    assert_like(torch.autograd.grad(loss, head.parameters), wanted)


def test_a_weight_that_changed_before_the_backward_pass_is_noticed(quick, device):
    head = random_head(device=device).leaves()
    loss = fused_loss(head, TERMS)
    with torch.no_grad():
        head.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_anomaly_detection(dtype, quick, device):
    head = random_head(dtype=dtype, device=device).with_ignored(1).leaves()
    with torch.autograd.detect_anomaly():
        fused_loss(head, TERMS).backward()
    assert all(tensor.grad.isfinite().all() for tensor in head.parameters)


def test_nothing_is_kept_without_need(quick, device):
    """A graph that is dropped drops its gradients, and the head, too."""
    import weakref

    head = random_head(dtype=torch.float32, device=device).leaves()
    hidden = head.hidden * 1
    loss = fused_loss(head._replace(hidden=hidden), TERMS)
    kept = weakref.ref(hidden)
    del hidden, loss
    assert kept() is None


def test_training_learns(quick, device):
    head = random_head((64,), dtype=torch.float32, device=device)
    linear = nn.Linear(6, 9).to(device)
    criterion = ak.LinearRobustLoss(linear, ak.GCE())
    optimizer = torch.optim.SGD(criterion.parameters(), lr=1.0)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = criterion(head.hidden, head.target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradients_of_a_model_below(reduction, backend, device):
    head = random_head(device=device)
    below = nn.Linear(6, 6).to(device, torch.float64)

    def gradients(loss_of):
        loss = loss_of(head._replace(hidden=below(head.hidden)), TERMS, reduction=reduction)
        return torch.autograd.grad(loss.sum(), list(below.parameters()))

    assert_like(gradients(fused_loss), gradients(unfused_loss))


def test_unfused_is_the_same_on_this_backend(quick, device):
    """What the tests of this folder compare with runs on the backend too."""
    head = random_head(device=device)
    with ak.use_backend("reference"):
        wanted = unfused(head, TERMS)
    assert_like(unfused(head, TERMS), wanted)
