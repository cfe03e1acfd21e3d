"""Which Triton kernels run; their values are tested in tests/test_forms.py."""

import pytest
import torch

import anl_kernels as ak
from anl_kernels.backends.triton.plan import plan_rows, plan_tiles
from tests.cases import CASES
from tests.helpers import error, expected, loss_and_grad, random_rows
from tests.triton.forms import forced, spied_kernels

pytestmark = pytest.mark.usefixtures("triton_backend")


@pytest.mark.parametrize("form_", ["tile", "sweep", "split"])
def test_softmax(form_, monkeypatch, device, poisoned):
    logits = torch.randn(3, 37, device=device, requires_grad=True)
    up = torch.randn(3, 37, device=device)
    with forced(form_, monkeypatch) as launched:
        probs = ak.softmax(logits)
        (grad,) = torch.autograd.grad(probs, logits, up)
    (by_torch,) = torch.autograd.grad(logits.softmax(-1), logits, up)
    torch.testing.assert_close(probs, logits.softmax(-1))
    torch.testing.assert_close(grad, by_torch)
    kind = "tile" if form_ == "tile" else "sweep"
    assert launched == [f"softmax_{kind}_kernel", f"softmax_backward_{kind}_kernel"]


def test_the_gradient_of_a_scalar_loss_is_scaled_in_place(device, monkeypatch):
    logits, target = random_rows(3, 37, torch.float32, device)
    launched = spied_kernels(monkeypatch)
    loss_and_grad(logits, target, CASES["ANL-CE"])
    assert launched == ["row_tile_kernel", "scale_kernel"]
    launched.clear()
    loss_and_grad(logits, target, CASES["ANL-CE"], reduction="none")
    assert launched == ["row_tile_kernel", "row_grad_kernel"]
    launched.clear()
    ak.robust_loss(logits, target, CASES["ANL-CE"])
    assert launched == ["row_tile_kernel"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("num_classes", [1, 10, 1000, 5000, 32000, 128256, 1 << 20])
@pytest.mark.parametrize("class_first", [False, True])
def test_plans_cover_the_row(class_first, num_classes, dtype):
    for num_rows in (1, 100, 8192):
        plan = plan_rows(num_rows, num_classes, class_first, dtype)
        assert plan.block_k & (plan.block_k - 1) == 0
        assert plan.block_n & (plan.block_n - 1) == 0
        assert plan.kind != "tile" or plan.block_k >= num_classes
        assert plan.kind != "split" or 1 < -(-num_classes // plan.part) <= 1024
        tiles = plan_tiles(num_classes, class_first, dtype)
        assert tiles.block_k & (tiles.block_k - 1) == 0


@pytest.mark.parametrize(
    ("num_rows", "num_classes", "form_"),
    [(8192, 10, "tile"), (8192, 1000, "tile"), (8192, 1 << 18, "sweep"), (2, 1 << 20, "split")],
)
def test_plans_by_size(num_rows, num_classes, form_):
    assert plan_rows(num_rows, num_classes, False, torch.bfloat16).kind == form_


def test_a_row_longer_than_a_tile_as_planned(device):
    logits, target = random_rows(2, 20011, torch.float32, device)
    terms = CASES["ANL-CE"]
    losses, grad = expected(logits.double(), target, terms)
    loss, ours = loss_and_grad(logits, target, terms, reduction="none")
    assert error(loss, losses) <= 1e-6
    assert error(ours, grad) <= 2e-6


def test_a_split_row_as_planned(device, monkeypatch):
    logits, target = random_rows(1, (1 << 17) + 3, torch.float32, device)
    terms = CASES["ANL-CE"]
    losses, grad = expected(logits.double(), target, terms)
    launched = spied_kernels(monkeypatch)
    loss, ours = loss_and_grad(logits, target, terms, reduction="none")
    assert "split_finish_kernel" in launched
    assert error(loss, losses) <= 1e-6
    assert error(ours, grad) <= 2e-6
