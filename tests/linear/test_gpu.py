"""The fused head where only a GPU can show it."""

import pytest
import torch
import torch.nn.functional as F

import anl_kernels as ak

pytestmark = pytest.mark.gpu

TERMS = 5.0 * ak.NCE() + 5.0 * ak.NNCE()
MIB = 1 << 20


def head(num_rows, width, num_classes, dtype):
    """(hidden, weight, target) with logits of standard deviation 3."""
    hidden = torch.randn(num_rows, width, device="cuda", dtype=dtype)
    weight = (3 * torch.randn(num_classes, width, device="cuda") / width**0.5).to(dtype)
    target = torch.randint(num_classes, (num_rows,), device="cuda")
    target[::7] = -100
    return hidden.requires_grad_(), weight.requires_grad_(), target


@pytest.fixture
def no_waiting():
    """An operation that waits for the device raises."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("softcap", [None, 30.0])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_nothing_waits_for_the_device(dtype, reduction, softcap, no_waiting):
    hidden, weight, target = head(300, 64, 5000, dtype)
    loss, _ = ak.linear_robust_loss(
        hidden, weight, target, TERMS, torch.zeros(5000, device="cuda", dtype=dtype),
        weight=torch.rand(5000, device="cuda"), reduction=reduction, return_aux=True,
        logit_softcap=softcap, chunk_bytes=MIB,
    )  # fmt: skip
    loss.backward(torch.ones_like(loss))


@pytest.mark.parametrize("skip_ignored", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_equals_float64(dtype, skip_ignored):
    hidden, weight, target = head(1000, 128, 20000, dtype)
    loss = ak.linear_robust_loss(
        hidden, weight, target, TERMS, skip_ignored=skip_ignored, chunk_bytes=8 * MIB
    )
    (loss * 4096).backward()
    exact = [t.detach().double().requires_grad_() for t in (hidden, weight)]
    truth = ak.robust_loss(F.linear(*exact), target, TERMS)
    (truth * 4096).backward()
    eager = [t.detach().clone().requires_grad_() for t in (hidden, weight)]
    (ak.robust_loss(F.linear(*eager), target, TERMS) * 4096).backward()
    assert loss.item() == pytest.approx(truth.item(), rel=1e-3)
    for ours, unfused, true in zip((hidden, weight), eager, exact, strict=True):
        allowed = (unfused.grad - true.grad).norm() + 1e-5 * true.grad.norm()
        assert (ours.grad - true.grad).norm() <= 1.2 * allowed


def test_sums_in_float32_are_closer_to_the_truth_than_sums_in_bfloat16():
    hidden, weight, target = head(2048, 64, 5000, torch.bfloat16)
    exact = [t.detach().double().requires_grad_() for t in (hidden, weight)]
    ak.robust_loss(F.linear(*exact), target, TERMS).backward()

    def error(accum_dtype):
        weight.grad = None
        ak.linear_robust_loss(
            hidden, weight, target, TERMS, chunk_bytes=MIB, accum_dtype=accum_dtype
        ).backward()
        return (weight.grad - exact[1].grad).norm()

    assert error(torch.float32) < 0.8 * error(torch.bfloat16)


@pytest.mark.parametrize("accum_dtype", [torch.float32, torch.bfloat16])
def test_peak_memory_is_the_gradients_and_a_chunk(accum_dtype):
    hidden, weight, target = head(4096, 256, 50000, torch.bfloat16)
    ak.linear_robust_loss(hidden, weight, target, TERMS).backward()  # compiles, opens cuBLAS
    hidden.grad = weight.grad = None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss = ak.linear_robust_loss(
        hidden, weight, target, TERMS, chunk_bytes=32 * MIB, accum_dtype=accum_dtype
    )
    loss.backward()
    torch.cuda.synchronize()
    gradients = hidden.nbytes + weight.nbytes
    sums = 2 * weight.nbytes if accum_dtype == torch.float32 else 0
    extra = torch.cuda.max_memory_allocated() - before
    assert extra <= gradients + sums + 32 * MIB + 4 * MIB


def test_a_cuda_graph_replays_on_new_inputs():
    hidden, weight, target = head(512, 64, 5000, torch.bfloat16)

    def gradients():
        loss = ak.linear_robust_loss(hidden, weight, target, TERMS, chunk_bytes=2 * MIB)
        return torch.autograd.grad(loss, (hidden, weight))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            gradients()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = gradients()
    with torch.no_grad():
        hidden.copy_(torch.randn_like(hidden))
    graph.replay()
    for ours, wanted in zip(captured, gradients(), strict=True):
        torch.testing.assert_close(ours, wanted)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's, of its own modules
def test_compiled():
    hidden, weight, target = head(512, 64, 5000, torch.bfloat16)
    compiled = torch.compile(ak.linear_robust_loss, fullgraph=True)
    for function in (compiled, ak.linear_robust_loss):
        hidden.grad = weight.grad = None
        function(hidden, weight, target, TERMS).backward()
        grads = hidden.grad.clone(), weight.grad.clone()
        if function is compiled:
            first = grads
    for ours, wanted in zip(first, grads, strict=True):
        torch.testing.assert_close(ours, wanted)
