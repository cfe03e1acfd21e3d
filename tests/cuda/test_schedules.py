"""The order in which a GPU runs threads is its own affair: the bits must not depend on it."""

import pytest
import torch

import anl_kernels as ak
from anl_kernels import interface
from anl_kernels.backends.choice import load_backend
from anl_kernels.interface import RowRequest, accumulator_dtype
from tests.cases import CASES
from tests.cuda import emulated
from tests.cuda.forms import SHARD_FORMS, forced_of_shards
from tests.forms import FORMS, checked
from tests.helpers import loss_and_grad, random_rows
from tests.shards import IGNORE, OF_ROWS, SPLITS, logits_of, run_shards

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has its own schedule")
ORDERS = [("forward", 0), ("backward", 0), ("shuffled", 1), ("shuffled", 2)]
AUX = ("term_losses", "lse", "p_y", "argmax", "probs")


@pytest.fixture
def schedule(cuda_backend):
    from tests.cuda.emulation import build

    control = build.load_control(emulated.FOLDER)
    yield control.set_schedule
    control.set_schedule("forward")


def in_every_order(schedule, compute):
    results = []
    for order in ORDERS:
        schedule(*order)
        results.append(compute())
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


@pytest.mark.parametrize("form", [form for backend, form in FORMS if backend == "cuda"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("case", ["ANL-CE", "all"])
def test_losses_and_gradients(case, dtype, form, schedule, monkeypatch):
    logits, target = random_rows(5, 37, dtype)
    target[2] = -100

    def compute():
        one_pass = loss_and_grad(logits, target, CASES[case])
        recomputed = loss_and_grad(logits, target, CASES[case], reduction="none")
        loss, aux = ak.robust_loss(logits, target, CASES[case], return_aux=AUX)
        return *one_pass, *recomputed, loss, *(getattr(aux, name) for name in AUX)

    with checked("cuda", form, monkeypatch):
        in_every_order(schedule, compute)


@pytest.mark.parametrize("shape", [(4, 7), (3, 5000), (2, 21, 9)])
def test_softmax(shape, schedule):
    logits = torch.randn(shape, requires_grad=True)
    up = torch.randn(shape)

    def compute():
        probs = ak.softmax(logits)
        return probs.detach(), *torch.autograd.grad(probs, logits, up)

    in_every_order(schedule, compute)


@pytest.mark.parametrize("shape", [(40, 7), (3, 5000), (70, 300), (2, 21, 300)])
def test_entropy_regulariser(shape, schedule):
    logits = torch.randn(shape, requires_grad=True)
    counted = torch.rand(shape[:1] + shape[2:]) > 0.3

    def compute():
        value = ak.entropy_regulariser(logits, counted=counted)
        return value.detach(), *torch.autograd.grad(value, logits)

    in_every_order(schedule, compute)


@pytest.mark.parametrize("form", SHARD_FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_shards(dtype, form, schedule):
    logits, target = logits_of(dtype, "rows", "cpu")
    request = RowRequest.of(CASES["all"], IGNORE, *OF_ROWS, *interface.AUX)
    scale = torch.ones((), dtype=accumulator_dtype(dtype))

    def compute():
        kernels = load_backend("cuda")
        outputs, grad, best = run_shards(kernels, logits, target, request, SPLITS["uneven"], scale)
        rows = (outputs.row_losses, outputs.term_losses, outputs.lse)
        return *rows, outputs.p_y, grad, *best

    with forced_of_shards(form):
        in_every_order(schedule, compute)
