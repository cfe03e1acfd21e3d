"""The L1 penalty is the official sum over parameters: value, gradient, steps of an optimiser."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

import anl_kernels as ak
from anl_kernels.regularisers import l1
from tests.helpers import error

FACTOR = 5e-5


@pytest.fixture
def model(device):
    """A model with biases, norms, zeros, and a frozen layer."""
    layers = [nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3), nn.Linear(3, 3)]
    layers[-1].requires_grad_(False)
    with torch.no_grad():
        layers[0].weight[0] = 0.0
    return nn.Sequential(*layers).to(device)


def official(parameters):
    """As the official code of ANL has it."""
    return sum(p.abs().sum() for p in parameters)


def gradients(penalty, parameters):
    learned = [p for p in parameters if p.requires_grad]
    return torch.autograd.grad(FACTOR * penalty(parameters), learned)


def nodes(tensor):
    """The nodes of the graph behind a tensor, those that accumulate into parameters apart."""
    found, waiting = set(), [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in found or node.name().endswith("AccumulateGrad"):
            continue
        found.add(node)
        waiting += [following for following, _ in node.next_functions]
    return len(found)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_value_and_gradient_are_the_official_ones(dtype, model):
    parameters = list(model.to(dtype).parameters())
    value = ak.l1_penalty(parameters)
    truth = official([p.detach().double() for p in parameters])
    assert value.shape == ()
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert error(value.detach(), truth) <= 1e-7
    wanted = gradients(official, parameters)
    for ours, grad in zip(gradients(ak.l1_penalty, parameters), wanted, strict=True):
        assert torch.equal(ours, grad)
    assert not wanted[0][0].any()  # at 0


def test_one_node_whatever_the_number_of_parameters(device):
    many = [nn.Parameter(torch.randn(3, device=device)) for _ in range(200)]
    assert nodes(ak.l1_penalty(many)) == 1
    assert nodes(official(many)) == 600


def test_large_tensors_lose_no_digits(device):
    """A norm in float32, one element after the other, loses half a percent here."""
    p = 1 + torch.rand(10_000_000, device=device)
    assert error(ak.l1_penalty([p]), p.double().sum()) <= 1e-6


def test_dtypes_mix(device):
    dtypes = [torch.float32, torch.bfloat16, torch.float64, torch.float32]
    parameters = [nn.Parameter(torch.randn(4, 3, device=device).to(dtype)) for dtype in dtypes]
    value = ak.l1_penalty(iter(parameters))
    assert value.dtype == torch.float64
    assert error(value.detach(), sum(p.detach().double().abs().sum() for p in parameters)) <= 1e-7
    wanted = gradients(official, parameters)
    for ours, grad in zip(gradients(ak.l1_penalty, parameters), wanted, strict=True):
        assert ours.dtype == grad.dtype
        assert torch.equal(ours, grad)


def test_strides_and_repetitions(device):
    p = torch.randn(6, 4, device=device, requires_grad=True)
    views = [p.t(), p[::2], p, p]
    ours = torch.autograd.grad(ak.l1_penalty(views), p)[0]
    assert torch.equal(ours, torch.autograd.grad(official(views), p)[0])


def test_a_tensor_and_nothing():
    p = torch.tensor([1.0, -2.0])
    assert ak.l1_penalty(p) == 3
    assert ak.l1_penalty([]) == 0
    assert ak.l1_penalty([torch.zeros(0)]) == 0
    ak.add_l1_grad_([], FACTOR)


def test_gradients_of_gradients(device):
    p = torch.randn(5, dtype=torch.float64, device=device, requires_grad=True)
    q = torch.randn(2, 2, dtype=torch.float64, device=device, requires_grad=True)
    for power in (1, 2):  # the second derivative of the penalty itself is 0

        def function(*tensors, power=power):
            return ak.l1_penalty(tensors) ** power

        assert torch.autograd.gradcheck(function, (p, q))
        assert torch.autograd.gradgradcheck(function, (p, q))
    (grad,) = torch.autograd.grad(ak.l1_penalty([p]), p, create_graph=True)
    assert not torch.autograd.grad(grad.sum(), p)[0].any()


def test_transforms(device):
    p = torch.randn(4, 3, device=device)
    assert torch.equal(torch.func.grad(ak.l1_penalty)(p), p.sign())
    ensemble = torch.func.vmap(torch.func.grad(lambda p: ak.l1_penalty([p, 2 * p])))
    assert torch.equal(ensemble(p), 3 * p.sign())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's, of its own modules
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_compiles_without_breaks(model):
    @torch.compile(fullgraph=True, backend="aot_eager")
    def loss(x):
        return model(x).square().mean() + FACTOR * ak.l1_penalty(model.parameters())

    x = torch.randn(6, 5, device=next(model.parameters()).device)
    learned = [p for p in model.parameters() if p.requires_grad]
    ours = torch.autograd.grad(loss(x), learned)
    wanted = torch.autograd.grad(
        model(x).square().mean() + FACTOR * official(model.parameters()), learned
    )
    torch.testing.assert_close(ours, wanted)


@pytest.mark.parametrize("has_grad", [False, True])
def test_add_l1_grad(has_grad, model, monkeypatch):
    monkeypatch.setattr(l1, "_MOST", 20)  # several batches
    monkeypatch.setattr(l1, "_PIECE", 20)
    twin = copy.deepcopy(model)
    x = torch.randn(6, 5, device=next(model.parameters()).device)
    if has_grad:
        model(x).square().mean().backward()
        twin(x).square().mean().backward()
    ak.add_l1_grad_(model.parameters(), FACTOR)
    (FACTOR * official(twin.parameters())).backward()
    for ours, wanted in zip(model.parameters(), twin.parameters(), strict=True):
        if wanted.requires_grad:
            assert torch.equal(ours.grad, wanted.grad)
        else:
            assert ours.grad is None


class Steps:
    """Training of a model in steps, with the penalty in the loss or by the hook."""

    def __init__(self, model, make, max_norm, by_hook):
        self.model = copy.deepcopy(model)
        self.optimizer = make([p for p in self.model.parameters() if p.requires_grad])
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 4)
        self.hook = ak.L1Hook(self.optimizer, FACTOR, max_norm) if by_hook else None
        self.max_norm = max_norm

    def __call__(self, batches):
        """A step over the gradients of some batches."""
        self.optimizer.zero_grad()
        for x in batches:
            self.model(x).square().mean().div(len(batches)).backward()
        if self.hook is None:
            (FACTOR * official(self.model.parameters())).backward()
            if self.max_norm:
                clip_grad_norm_(self.model.parameters(), self.max_norm)
        self.optimizer.step()
        self.scheduler.step()


def adam(parameters):
    return torch.optim.AdamW(parameters, lr=0.01)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


@pytest.mark.parametrize("max_norm", [None, 1e-2, 5.0])
@pytest.mark.parametrize("make", [sgd, adam])
def test_hook_is_the_penalty_in_the_loss(make, max_norm, model):
    """The sign of the parameters and the clip make steps differ at once where one is left out."""
    ours, wanted = (Steps(model, make, max_norm, by_hook) for by_hook in (True, False))
    device = next(model.parameters()).device
    for _ in range(4):
        batches = torch.randn(2, 6, 5, device=device)
        ours(batches)
        wanted(batches)
    before, after = model.state_dict(), wanted.model.state_dict()
    assert error(before["0.weight"], after["0.weight"]) > 1e-3
    for name, value in ours.model.state_dict().items():
        assert torch.equal(value, after[name]), name


def test_hook_can_be_changed_and_removed(model):
    optimizer = sgd(model.parameters())
    hook = ak.L1Hook(optimizer, 0.0)
    p = next(model.parameters())
    before = p.detach().clone()
    optimizer.step()
    assert torch.equal(p, before)
    hook.factor = 1.0
    optimizer.step()
    torch.testing.assert_close(p.detach(), before - 0.1 * before.sign())
    hook.remove()
    p.grad = None
    optimizer.step()
    assert p.grad is None


def test_hook_works_on_unscaled_gradients(model):
    device = next(model.parameters()).device.type
    ours, wanted = (Steps(model, sgd, 1e-2, by_hook) for by_hook in (True, False))
    scaler = torch.amp.GradScaler(device, init_scale=1024.0)
    x = torch.randn(6, 5, device=device)
    scaler.scale(ours.model(x).square().mean()).backward()
    scaler.step(ours.optimizer)
    scaler.update()
    wanted([x])
    for p, q in zip(ours.model.parameters(), wanted.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


def test_hook_and_a_fused_optimizer(model):
    device = next(model.parameters()).device.type
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    ak.L1Hook(optimizer, FACTOR)
    scaler = torch.amp.GradScaler(device, init_scale=1024.0)
    scaler.scale(model(torch.randn(6, 5, device=device)).mean()).backward()
    with pytest.raises(RuntimeError, match=r"scaler\.unscale_\(optimizer\) before"):
        scaler.step(optimizer)
    del optimizer.grad_scale  # as the scaler does at the end of its step
    scaler.unscale_(optimizer)
    scaler.step(optimizer)


def test_hook_refuses_closures(model):
    optimizer = sgd(model.parameters())
    ak.L1Hook(optimizer, FACTOR)
    for arguments in ({"closure": lambda: 0.0}, {"closure": None}):
        if arguments["closure"]:
            with pytest.raises(RuntimeError, match=r"ak\.l1_penalty into the closure's loss"):
                optimizer.step(**arguments)
        else:
            optimizer.step(**arguments)
    with pytest.raises(RuntimeError, match="call step\\(\\) without one"):
        optimizer.step(lambda: 0.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (nn.Linear(2, 2), r"got a module; pass module\.parameters\(\)"),
        ([torch.zeros(2), 3.0], "got float at place 1"),
        ([torch.zeros(2, dtype=torch.complex64)], "floating and dense, got torch.complex64"),
        ([torch.zeros(2, dtype=torch.int64)], "got torch.int64"),
        ([torch.zeros(2).to_sparse()], "layout torch.sparse_coo"),
    ],
)
def test_refused_parameters(given, message):
    with pytest.raises(TypeError, match=message):
        ak.l1_penalty(given)
    with pytest.raises(TypeError, match=message):
        ak.add_l1_grad_(given, 1.0)


def test_refused_arguments():
    p = nn.Parameter(torch.ones(2))
    for factor in (-1.0, float("nan"), float("inf"), "1"):
        with pytest.raises(ValueError, match="factor must be a finite number that is at least 0"):
            ak.add_l1_grad_([p], factor)
        with pytest.raises(ValueError, match="factor must be"):
            ak.L1Hook(sgd([p]), factor)
    with pytest.raises(ValueError, match="max_norm must be above 0"):
        ak.L1Hook(sgd([p]), 1.0, max_norm=0.0)
    with pytest.raises(TypeError, match=r"optimizer must be a torch\.optim\.Optimizer"):
        ak.L1Hook([p], 1.0)
    p.grad = torch.ones(2).to_sparse()
    with pytest.raises(TypeError, match=r"dense gradients, got one of layout torch\.sparse_coo"):
        ak.add_l1_grad_([p], 1.0)


def test_gradients_of_another_dtype_than_the_parameter():
    p = nn.Parameter(torch.tensor([1.0, -2.0, 0.0], dtype=torch.bfloat16))
    if not hasattr(p, "grad_dtype"):
        pytest.skip("this torch has no grad_dtype")
    p.grad_dtype = torch.float32
    for times in (1, 2):  # made, then added to
        ak.add_l1_grad_([p], 0.5)
        assert p.grad.dtype == torch.float32
        assert p.grad.tolist() == [0.5 * times, -0.5 * times, 0.0]


def test_what_is_no_leaf_is_refused():
    p = nn.Parameter(torch.ones(3))
    with pytest.raises(TypeError, match="must be leaves of the graph"):
        ak.add_l1_grad_([2 * p], 0.5)


@pytest.mark.parametrize("factor", [True, "5e-5", -1.0, float("nan"), None])
def test_what_is_no_factor(factor, model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="factor must be a finite number"):
        ak.L1Hook(optimizer, factor)
    ak.L1Hook(optimizer, np.float32(5e-5), max_norm=np.float64(5.0))
    with pytest.raises(ValueError, match="max_norm must be above 0"):
        ak.L1Hook(optimizer, 5e-5, max_norm="5")
