"""The cache of large gradients: what it holds and saves; tensors from it are as any."""

import os
import pickle
import sys
import threading

import numpy as np
import pytest
import torch

import anl_kernels as ak
from anl_kernels.backends.choice import extension
from tests.cpu.processes import run_script
from tests.helpers import loss_and_grad, random_rows

MIB = 1 << 20
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the cache is for Linux")


@pytest.fixture(autouse=True)
def cache(cpu_backend):
    """The module of facts, with an empty cache of 64 MiB."""
    facts = extension("cpu")
    _, limit = facts.cache_facts()
    facts.empty_cache()
    facts.set_cache_limit(64 * MIB)
    yield facts
    facts.set_cache_limit(limit)
    facts.empty_cache()


def held(cache):
    return cache.cache_facts()[0]


def buffer(mib=4, dtype=torch.float32):
    """A tensor of the size of a gradient."""
    like = torch.empty(1, dtype=dtype).expand(mib * MIB // dtype.itemsize // 1024, 1024)
    return torch.ops.anl_kernels_cpu.empty_like_rows(like)


def gradient(num_rows=33, num_classes=32000):
    logits, target = random_rows(num_rows, num_classes)
    return loss_and_grad(logits, target, ak.CE())[1]


def test_a_gradient_is_used_again(cache):
    torch.manual_seed(0)
    first = gradient()
    place, wanted = first.data_ptr(), first.clone()
    assert held(cache) == 0
    del first
    assert held(cache) >= 33 * 32000 * 4
    torch.manual_seed(0)
    again = gradient()
    assert held(cache) == 0
    assert again.data_ptr() == place
    assert torch.equal(again, wanted)


def test_a_small_gradient_is_not_kept(cache):
    del_me = gradient(num_rows=2)
    del del_me
    assert held(cache) == 0


def test_what_a_buffer_held_does_not_show(cache):
    logits, target = random_rows(40, 32000)
    target[::7] = -100
    logits[:, 5::97] = -torch.inf
    target[logits[torch.arange(40), target.clamp(min=0)] == -torch.inf] = 0
    for reduction in ("sum", "none"):
        _, wanted = loss_and_grad(logits, target, ak.NCE() + ak.AMSE(3), reduction=reduction)
        wanted = wanted.clone()
        buffer(mib=5).fill_(torch.nan)
        _, grad = loss_and_grad(logits, target, ak.NCE() + ak.AMSE(3), reduction=reduction)
        assert torch.equal(grad, wanted)


@pytest.mark.parametrize(("mib", "fits"), [(8, True), (7, True), (6, False), (9, False)])
def test_a_block_serves_what_is_not_much_smaller(mib, fits, cache):
    place = buffer(8).data_ptr()
    other = buffer(mib)
    assert held(cache) == (0 if fits else 8 * MIB)
    assert (other.data_ptr() == place) == fits


def test_limit(cache):
    cache.set_cache_limit(20 * MIB)
    buffers = [buffer(8) for _ in range(4)]
    while buffers:
        buffers.pop()
        assert held(cache) <= 20 * MIB
    assert cache.cache_facts() == (16 * MIB, 20 * MIB)
    cache.set_cache_limit(10 * MIB)
    assert cache.cache_facts() == (8 * MIB, 10 * MIB)
    large = buffer(12)
    del large
    assert held(cache) == 0


@pytest.mark.parametrize("limit", [0, -1])
def test_no_cache(limit, cache):
    before = buffer()
    cache.set_cache_limit(limit)
    assert cache.cache_facts() == (0, 0)
    after = buffer()
    for tensor in (before, after):
        tensor.fill_(1)
    del before, after, tensor
    assert cache.cache_facts() == (0, 0)


def test_a_tensor_outlives_the_cache(cache):
    tensor, kept = buffer().fill_(3), buffer()
    del kept
    assert held(cache) == 4 * MIB
    cache.empty_cache()
    assert held(cache) == 0
    assert (tensor == 3).all()
    view = tensor[5:]
    del tensor
    assert (view == 3).all()
    del view
    assert held(cache) == 4 * MIB


def test_threads(cache):
    wrong = []

    def work(number):
        for round_ in range(30):
            tensor = buffer(4 + 2 * (round_ % 3)).fill_(number)
            wrong.extend([held(cache)] if held(cache) > 64 * MIB else [])
            if round_ % 10 == number:
                cache.empty_cache()
            if not (tensor == number).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert held(cache) <= 64 * MIB


def test_tensors_are_as_any(cache):
    tensor = buffer()
    tensor.copy_(torch.randn(tensor.shape))
    expected = torch.empty(tensor.shape).copy_(tensor)
    assert torch.equal(tensor.clone(), expected)
    assert torch.equal(pickle.loads(pickle.dumps(tensor)), expected)
    smaller, larger = tensor[:10].clone().resize_(3, 1024), tensor.resize_(4096, 1024)
    assert torch.equal(smaller, expected[:3])
    assert torch.equal(larger[:1024], expected)
    larger.untyped_storage().resize_(0)
    assert held(cache) > 0
    assert np.array_equal(buffer().copy_(expected).numpy(), expected.numpy())
    shared = buffer().copy_(expected).share_memory_()
    assert shared.is_shared()
    assert torch.equal(shared, expected)


def test_a_buffer_for_every_dtype(cache):
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        tensor = buffer(dtype=dtype)
        assert tensor.dtype == dtype
        assert tensor.untyped_storage().nbytes() == 4 * MIB
        assert tensor.data_ptr() % (2 * MIB) == 0


PEAK = """
import re, sys
import torch
import anl_kernels as ak
from anl_kernels.backends.choice import extension

def memory(name):
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024

def step(inplace):
    leaf = torch.randn({num_rows}, 32000, requires_grad=True)
    logits = leaf.detach().requires_grad_() * 1
    target = torch.randint(32000, ({num_rows},))
    before = memory("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")
    loss = ak.robust_loss(logits, target, 5.0 * ak.NCE() + 5.0 * ak.NNCE(), inplace=inplace)
    torch.autograd.grad(loss, logits)
    return (memory("VmHWM") - before) / (logits.numel() * 4)

torch.manual_seed(0)
{body}
"""


def measure(body, num_rows):
    printed = run_script(PEAK.format(body=body, num_rows=num_rows))
    return [float(word) for word in printed.split()]


no_peaks = pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK) or "asan" in os.environ.get("LD_PRELOAD", ""),
    reason="no peak of memory to reset, or not the program's own memory alone",
)


@no_peaks
@pytest.mark.parametrize(("inplace", "most"), [(False, 1.2), (True, 0.1)])
def test_peak_memory(inplace, most):
    """Of logits: the gradient alone, whatever the call before left; nothing in place."""
    warm = "ak.robust_loss(torch.zeros(1, 9, requires_grad=True), torch.tensor([1]), ak.NCE())"
    body = f"{warm}.backward(); print(step({inplace}), step({inplace}))"
    first, second = measure(body, 256)
    assert first <= most
    assert second <= most


@no_peaks
def test_no_leak():
    body = """
leaf, target = torch.randn(64, 32000, requires_grad=True), torch.randint(32000, (64,))

def call():
    loss = ak.robust_loss(leaf, target, 5.0 * ak.NCE() + 5.0 * ak.NNCE())
    torch.autograd.grad(loss, leaf)

call(); call()
first = memory("VmRSS")
for _ in range(50):
    call()
print((memory("VmRSS") - first) / (leaf.numel() * 4))
"""
    (growth,) = measure(body, 64)
    assert growth <= 0.5  # gradients, of the 50 that a leak would be


def test_the_profiler_sees_it(cache):
    logits = torch.randn(64, 32000, requires_grad=True)
    target = torch.zeros(64, dtype=torch.long)
    with torch.profiler.profile(profile_memory=True) as profile:
        torch.autograd.grad(ak.robust_loss(logits, target, ak.NCE()), logits)
    seen = sum(max(0, e.self_cpu_memory_usage) for e in profile.key_averages() if "row_" in e.key)
    losses_of_rows = 4 * len(logits)  # made and released within the operator
    assert seen >= logits.numel() * 4 - losses_of_rows
