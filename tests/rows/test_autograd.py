"""What autograd asks of the Functions, beside the derivatives themselves."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import anl_kernels as ak
from anl_kernels.interface import RowRequest
from anl_kernels.rows.autograd import RowLossFunction
from anl_kernels.rows.operators import Where
from tests.cases import CASES, KINDS, over
from tests.helpers import error, loss_and_grad, random_rows

TERMS = CASES["ANL-CE"]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture
def problem(device):
    return random_rows(4, 7, torch.float32, device)


@pytest.mark.parametrize("upstream", [1.0, -3.0, 1e-3, 0.0])
@pytest.mark.parametrize("dtype", DTYPES)
@over(KINDS)
def test_upstream_gradient(terms, dtype, upstream, backend, device):
    logits, target = random_rows(3, 7, dtype, device)
    _, grad = loss_and_grad(logits.double(), target, terms)
    leaf = logits.clone().requires_grad_()
    (upstream * ak.robust_loss(leaf, target, terms)).backward()
    rounding = error((upstream * grad).to(dtype), upstream * grad)
    # The one-pass form rounds before and after the upstream gradient.
    assert error(leaf.grad, upstream * grad) <= 2.5 * rounding + 2e-6


def test_upstream_gradient_of_each_row(backend, device, problem):
    logits, target = problem
    upstream = torch.randn(4, device=device)
    leaf = logits.clone().requires_grad_()
    losses = ak.robust_loss(leaf, target, TERMS, reduction="none")
    (grad,) = torch.autograd.grad(losses, leaf, upstream)
    _, rows = loss_and_grad(logits, target, TERMS, reduction="none")
    torch.testing.assert_close(grad, upstream[:, None] * rows)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_gradient_is_not_cloned(reduction, kernels, device, problem):
    logits, target = problem
    leaf = logits.clone().requires_grad_()
    written = []
    accumulates = torch.autograd.graph.get_gradient_edge(leaf).node
    accumulates.register_prehook(lambda grads: written.append(grads[0].data_ptr()))
    ak.robust_loss(leaf, target, TERMS, reduction=reduction).sum().backward()
    assert leaf.grad.data_ptr() == written[0]


def test_gradients_accumulate(backend, device, problem):
    logits, target = problem
    _, grad = loss_and_grad(logits, target, TERMS)
    leaf = logits.clone().requires_grad_()
    for _ in range(3):
        ak.robust_loss(leaf, target, TERMS).backward()
    torch.testing.assert_close(leaf.grad, 3 * grad)


@pytest.mark.parametrize("upstream", [1.0, 2.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_retain_graph(dtype, upstream, backend, device):
    logits, target = random_rows(3, 7, dtype, device)
    leaf = logits.clone().requires_grad_()
    loss = upstream * ak.robust_loss(leaf, target, TERMS)
    grads = [torch.autograd.grad(loss, leaf, retain_graph=True)[0] for _ in range(3)]
    assert error(grads[1], grads[0]) <= 2 * torch.finfo(dtype).eps
    assert torch.equal(grads[2], grads[1])


def test_two_losses_of_the_same_logits(backend, device, problem):
    logits, target = problem
    leaf = logits.clone().requires_grad_()
    loss = ak.robust_loss(leaf, target, ak.NCE()) + 2 * ak.robust_loss(leaf, target, ak.MAE())
    (grad,) = torch.autograd.grad(loss, leaf)
    _, wanted = loss_and_grad(logits, target, ak.NCE() + 2.0 * ak.MAE())
    torch.testing.assert_close(grad, wanted)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_activation_checkpointing(reduction, use_reentrant, backend, device, problem):
    logits, target = problem
    _, wanted = loss_and_grad(logits, target, TERMS, reduction=reduction)
    leaf = logits.clone().requires_grad_()

    def loss(z):
        return ak.robust_loss(z * 1, target, TERMS, reduction=reduction).sum()

    checkpoint(loss, leaf, use_reentrant=use_reentrant).backward()
    torch.testing.assert_close(leaf.grad, wanted)


def test_saved_tensor_hooks(backend, device, problem):
    logits, target = problem
    _, wanted = loss_and_grad(logits, target, TERMS)
    leaf = logits.clone().requires_grad_()
    with torch.autograd.graph.save_on_cpu():
        loss = ak.robust_loss(leaf, target, TERMS)
    loss.backward()
    torch.testing.assert_close(leaf.grad, wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype, backend, device):
    inputs, target = random_rows(4, 6, torch.float32, device)
    linear = torch.nn.Linear(6, 6).to(device)
    with torch.autocast(device.type, dtype=dtype):
        logits = linear(inputs)
        loss = ak.robust_loss(logits, target, TERMS)
    assert logits.dtype == dtype
    assert loss.dtype == torch.float32
    loss.backward()
    _, by_logits = loss_and_grad(logits, target, TERMS)
    torch.testing.assert_close(linear.bias.grad, by_logits.float().sum(0), rtol=0.02, atol=1e-3)


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_anomaly_detection(backend, device, problem):
    logits, target = problem
    leaf = logits.clone().requires_grad_()
    with torch.autograd.detect_anomaly():
        ak.robust_loss(leaf, target, TERMS).backward()
    assert leaf.grad.isfinite().all()


def test_labels_get_no_gradient(kernels, device, problem):
    logits, target = problem
    request = RowRequest.of(TERMS, -100, "loss", "row_losses", "saved")
    scale = torch.ones((), device=device, requires_grad=True)
    tensors = logits.requires_grad_(), target, scale, None
    loss, *rest = RowLossFunction.apply(*tensors, Where(kernels), request)
    by_logits, by_scale = torch.autograd.grad(loss, (logits, scale))
    _, wanted = loss_and_grad(logits, target, TERMS, reduction="sum")
    torch.testing.assert_close(by_logits, wanted)
    torch.testing.assert_close(by_scale, loss.detach())
    assert not any(output.requires_grad for output in rest)


def test_logits_without_gradient_beside_weights_with_one(backend, device, problem):
    logits, target = problem
    alpha = torch.tensor(2.0, device=device, requires_grad=True)
    loss = ak.robust_loss(logits, target, alpha * ak.NCE())
    (grad,) = torch.autograd.grad(loss, alpha)
    torch.testing.assert_close(grad, ak.robust_loss(logits, target, ak.NCE()))


def test_weights_that_share_a_tensor(backend, device, problem):
    logits, target = problem
    alpha = torch.tensor(2.0, device=device, requires_grad=True)
    loss = ak.robust_loss(logits, target, alpha * (ak.NCE() + 3.0 * ak.MAE()))
    (grad,) = torch.autograd.grad(loss, alpha)
    torch.testing.assert_close(grad, ak.robust_loss(logits, target, ak.NCE() + 3.0 * ak.MAE()))
