"""What only a GPU can show: no waiting for the device, CUDA graphs, real sizes, real rounding."""

import pytest
import torch
import torch.nn.functional as F

import anl_kernels as ak
from tests.backends import running_on

pytestmark = pytest.mark.gpu

TERMS = 5.0 * ak.NCE() + 5.0 * ak.NNCE()
SHAPES = {  # that the planners give to each form
    "short rows": (4096, 10),
    "rows in registers": (512, 1000),
    "long rows": (64, 50257),
    "rows of a cluster": (64, 131072),
    "few rows": (4, 300_000),
    "split rows": (3, 2_000_003),
    "positions": (2, 21, 65, 64),
    "many classes of positions": (2, 150, 33, 64),
    "positions that no tile holds": (2, 1500, 9, 8),
}


def rows(shape, dtype=torch.float32):
    logits = 3 * torch.randn(shape, device="cuda", dtype=dtype)
    target = torch.randint(shape[1], (shape[0], *shape[2:]), device="cuda")
    target.view(-1)[::7] = -100
    return logits.requires_grad_(), target


@pytest.fixture(autouse=True, params=["triton", "cuda"])
def _backend(request):
    with running_on(request.param):
        yield


@pytest.fixture
def no_waiting():
    """An operation that waits for the device raises."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_nothing_waits_for_the_device(shape, reduction, no_waiting):
    logits, target = rows(shape)
    weight = torch.rand(shape[1], device="cuda")
    loss = ak.robust_loss(
        logits, target, TERMS, weight=weight, reduction=reduction, return_aux=True
    )[0]
    loss.backward(torch.ones_like(loss))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_cuda_graph_replays_on_new_logits(shape):
    logits, target = rows(shape)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compiles the kernels
        for _ in range(2):
            torch.autograd.grad(ak.robust_loss(logits, target, TERMS), logits)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = ak.robust_loss(logits, target, TERMS)
        (grad,) = torch.autograd.grad(loss, logits)
    with torch.no_grad():
        logits.copy_(torch.randn_like(logits))
    graph.replay()
    expected = ak.robust_loss(logits, target, TERMS)
    (expected_grad,) = torch.autograd.grad(expected, logits)
    assert torch.equal(loss, expected)
    assert torch.equal(grad, expected_grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_equals_the_reference_in_float64(shape, dtype):
    logits, target = rows(shape, dtype)
    loss = ak.robust_loss(logits, target, TERMS, reduction="sum")
    (grad,) = torch.autograd.grad(loss, logits)
    exact = logits.detach().double().requires_grad_()
    with ak.use_backend("reference"):
        exact_loss = ak.robust_loss(exact, target, TERMS, reduction="sum")
    (exact_grad,) = torch.autograd.grad(exact_loss, exact)
    assert loss.item() == pytest.approx(exact_loss.item(), rel=1e-5)
    rounding = (exact_grad.to(dtype).double() - exact_grad).norm()
    assert (grad.double() - exact_grad).norm() <= 1.1 * rounding + 1e-5 * exact_grad.norm()


def test_a_label_out_of_range_is_nan_until_checked():
    logits, target = rows((4, 1000))
    target[2] = 1000
    losses = ak.robust_loss(logits, target, TERMS, reduction="none")
    (grad,) = torch.autograd.grad(losses.sum(), logits)
    assert losses.isnan().tolist() == [False, False, True, False]
    assert grad.isnan().any(1).tolist() == [False, False, True, False]
    with ak.check_labels(), pytest.raises(IndexError, match=r"target\[2\] is 1000"):
        ak.robust_loss(logits, target, TERMS)


def test_peak_memory_is_one_gradient_and_none_in_place():
    hidden = torch.randn(2048, 64, device="cuda", requires_grad=True)
    target = torch.randint(32000, (2048,), device="cuda")
    weight = torch.randn(64, 32000, device="cuda")

    def extra(inplace):
        logits = hidden @ weight
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        ak.robust_loss(logits, target, TERMS, inplace=inplace)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    size = 2048 * 32000 * 4
    assert extra(inplace=False) <= size + 2**20
    assert extra(inplace=True) <= 2**20


def test_cross_entropy_agrees_with_pytorch_at_a_vocabulary():
    logits, target = rows((256, 128256), torch.bfloat16)
    ours = ak.robust_loss(logits, target, ak.CE())
    theirs = F.cross_entropy(logits.float(), target)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
