"""Compiled and exported: the same loss, gradient and running mean, in one graph."""

import copy

import pytest
import torch
from torch import nn

import anl_kernels as ak
from tests.balance.definitions import MIXED, MODES, problem
from tests.helpers import leaf
from tests.test_compile import COMPILERS

ANL = 1.0 * ak.NCE() + 2.0 * ak.NNCE()
modes = pytest.mark.parametrize("mode", MODES)
of_batches = pytest.mark.parametrize("mode", ["batch", "running"])
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def assert_trains_alike(compiled, module, batches):
    for inputs, target in batches:
        given = leaf(inputs), leaf(inputs)
        losses = [call(z, target) for call, z in zip((compiled, module), given, strict=True)]
        for loss in losses:
            loss.backward()
        torch.testing.assert_close(*losses)
        torch.testing.assert_close(*(z.grad for z in given))


def assert_modules_alike(mode, compiler, device, shapes):
    eager = ak.RobustLoss(MIXED, class_scale=mode).to(device)
    module = copy.deepcopy(eager)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=compiler)
    assert_trains_alike(compiled, eager, [problem(s, torch.float32, device) for s in shapes])
    if mode == "running":
        torch.testing.assert_close(module.running_summands, eager.running_summands)
        assert module.running_summands.all()
    return compiled, eager


@modes
def test_modules(mode, device):
    """Any number of rows, and of classes; the buffer moves, unless in eval mode."""
    compiled, eager = assert_modules_alike(mode, "aot_eager", device, [(5, 6), (4, 9)])
    if mode == "running":
        compiled.eval(), eager.eval()
        before = compiled.running_summands.clone()
        assert_trains_alike(compiled, eager, [problem((5, 6), torch.float32, device)])
        assert torch.equal(compiled.running_summands, before)


@pytest.mark.parametrize("compiler", COMPILERS[1:])
def test_inductor(compiler, device):
    assert_modules_alike("running", compiler, device, [(5, 6)])


def test_backends(kernels, device):
    eager = ak.RobustLoss(ANL, class_scale="running").to(device)
    compiled = torch.compile(copy.deepcopy(eager), fullgraph=True, backend="aot_eager")
    assert_trains_alike(compiled, eager, [problem((5, 6), torch.float32, device)])


@of_batches
def test_heads(mode, device):
    eager = ak.LinearRobustLoss(nn.Linear(4, 6), ANL, class_scale=mode).to(device)
    compiled = torch.compile(
        copy.deepcopy(eager), fullgraph=True, dynamic=True, backend="aot_eager"
    )
    logits, target = problem((5, 6), torch.float32, device)
    assert_trains_alike(compiled, eager, [(logits[:, :4], target)])


def test_a_step_with_learned_weights(device):
    alpha = nn.Parameter(torch.tensor(0.7, device=device))
    module = ak.RobustLoss(alpha * ak.NCE() + ak.GCE(), class_scale="running").to(device)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    logits, target = problem((5, 6), torch.float32, device)
    compiled(leaf(logits), target).backward()
    found, alpha.grad = alpha.grad, None
    ak.robust_loss(leaf(logits), target, module.terms).backward()
    torch.testing.assert_close(found, alpha.grad)


@of_batches
def test_functions(mode, device):
    state = torch.zeros(2, device=device) if mode == "running" else None

    @torch.compile(fullgraph=True, backend="aot_eager")
    def loss(z, y):
        scale = ak.Balance(mode, running=state)
        return ak.robust_loss(z, y, ak.NCE() + ak.NNCE(), class_scale=scale)

    logits, target = problem((5, 6), torch.float32, device)
    given = leaf(logits)
    loss(given, target).backward()
    eager = ak.RobustLoss(ak.NCE() + ak.NNCE(), class_scale=mode).to(device)
    wanted = leaf(logits)
    eager(wanted, target).backward()
    torch.testing.assert_close(given.grad, wanted.grad)
    if state is not None:
        torch.testing.assert_close(state, eager.running_summands)


@of_batches
def test_a_transform_inside(mode, device):
    module = ak.RobustLoss(ANL, class_scale=mode).to(device).eval()
    logits, target = problem((5, 6), torch.float32, device)
    compiled = torch.compile(
        lambda z: torch.func.grad(lambda x: module(x, target))(z),
        fullgraph=True,
        backend="aot_eager",
    )
    given = leaf(logits)
    module(given, target).backward()
    torch.testing.assert_close(compiled(logits), given.grad)


@pytest.mark.parametrize("training", [True, False])
def test_exported(training, device):
    module = ak.RobustLoss(ANL, class_scale="running").to(device).train(training)
    logits, target = problem((5, 6), torch.float32, device)
    program = torch.export.export(module, (logits, target), strict=training)
    torch.testing.assert_close(program.module()(logits, target), module(logits, target))
