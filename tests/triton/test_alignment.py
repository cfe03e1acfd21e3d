"""What kernels are told of the alignment of rows, and that it is true of every tensor."""

import pytest
import torch

from anl_kernels.backends.triton.plan import Plan, plan_rows
from tests.cases import CASES
from tests.helpers import error, expected, loss_and_grad
from tests.triton.forms import forced

pytestmark = pytest.mark.usefixtures("triton_backend")
bf16, f32, f64 = torch.bfloat16, torch.float32, torch.float64


def rows_in(stride, offset, num_classes, dtype, num_rows=3):
    """Rows of classes, ``stride`` apart in memory, from an offset on."""
    memory = torch.randn(offset + num_rows * stride, dtype=f64).to(dtype)
    return memory[offset:].view(num_rows, stride)[:, :num_classes]


TILE = Plan("tile", 1, 1024, 4)


def block_of(*tensors, plan=TILE):
    from anl_kernels.backends.triton.structs import block_of, strided
    from anl_kernels.layout import as_rows

    views = [as_rows(tensor) for tensor in tensors]
    return block_of(plan, views[0], [strided(view) for view in views])


@pytest.mark.parametrize(
    ("stride", "offset", "num_classes", "dtype", "align"),
    [
        (1000, 0, 1000, bf16, 8),
        (1000, 8, 1000, bf16, 8),
        (1008, 0, 1000, bf16, 8),
        (1024, 0, 1000, bf16, 8),
        (1000, 0, 1000, f32, 4),
        (1000, 4, 1000, f32, 4),
        (1000, 0, 1000, f64, 2),
        (1004, 0, 1004, bf16, 4),
        (1004, 0, 1000, bf16, 4),
        (1000, 0, 996, bf16, 4),
        (1002, 0, 1002, bf16, 2),
        (1001, 0, 1001, bf16, 1),
        (1001, 0, 1000, bf16, 1),
        (1000, 1, 1000, bf16, 1),
        (1000, 4, 1000, bf16, 1),  # 8 bytes, of which Triton says nothing
        (1000, 1, 1000, f32, 1),
    ],
)
def test_what_is_said_of_rows(stride, offset, num_classes, dtype, align):
    assert block_of(rows_in(stride, offset, num_classes, dtype)).align == align


def test_it_is_true_of_every_tensor():
    aligned = rows_in(1000, 0, 1000, bf16)
    assert block_of(aligned, rows_in(1001, 0, 1000, bf16)).align == 1
    assert block_of(aligned, rows_in(1000, 1, 1000, bf16)).align == 1
    assert block_of(aligned, rows_in(1004, 0, 1000, bf16)).align == 4
    assert block_of(aligned, aligned).align == 8


def test_classes_that_are_no_neighbours():
    assert block_of(torch.empty(1000, 16, dtype=bf16).t()).align == 1
    assert block_of(torch.empty(2, 16, 24, dtype=bf16)).align == 1
    last = torch.empty(2, 16, 8, 8, dtype=bf16).to(memory_format=torch.channels_last)
    assert block_of(last).align == 8


def test_a_stride_that_is_never_gone():
    one = torch.empty_strided((1, 1000), (1001, 1), dtype=bf16)
    assert block_of(one).align == 8


@pytest.mark.parametrize("num_dense", [0, 1, 2, 3, 9])
@pytest.mark.parametrize("dtype", [bf16, f32, f64])
@pytest.mark.parametrize("num_classes", [131072, 131076, 131073])
def test_a_lane_has_whole_vectors(num_classes, dtype, num_dense):
    plan = plan_rows(8192, num_classes, False, dtype, num_dense)
    block = block_of(torch.empty(8192, num_classes, dtype=dtype, device="meta"), plan=plan)
    assert plan.kind == "sweep"
    assert block.k % (block.lanes * block.vector) == 0
    assert block.vector == min(block.align, block.k // block.lanes)


@pytest.mark.parametrize("form", ["tile", "sweep", "sweep-of-rows", "split"])
@pytest.mark.parametrize(
    ("stride", "offset", "num_classes"),
    [(40, 0, 40), (40, 8, 40), (40, 1, 40), (41, 0, 40), (44, 0, 40), (64, 0, 37), (48, 0, 48)],
)
def test_values(stride, offset, num_classes, form, monkeypatch, poisoned):
    logits = rows_in(stride, offset, num_classes, f32)
    target = torch.tensor([0, num_classes - 1, 17])
    terms = CASES["ANL-CE"]
    losses, grad = expected(logits.double(), target, terms)
    with forced(form, monkeypatch):
        loss, ours = loss_and_grad(logits, target, terms, reduction="none")
    assert error(loss, losses) <= 1e-6
    assert error(ours, grad) <= 2e-6
