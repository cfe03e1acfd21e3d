"""The operators, as ``torch.library.opcheck`` and others who read schemas see them."""

import pytest
import torch

from anl_kernels.interface import AUX, RowRequest, accumulator_dtype
from anl_kernels.linear.operators import Projection, Specs
from anl_kernels.linear.several_classes import any_class
from anl_kernels.rows.log_probs import CROSS_ENTROPY
from anl_kernels.rows.operators import Where
from tests.cases import CASES
from tests.linear.heads import random_head

OPS = torch.ops.anl_kernels
TERMS = CASES["ANL-CE"]
RECOMPUTE = {"outputs": ("loss", "row_losses", "saved")}
ONE_PASS = {"outputs": ("loss", "row_losses", "grad")}
ONE_PASS_AUX = {"outputs": (*ONE_PASS["outputs"], *AUX)}
SPECS = {
    "loss": RECOMPUTE,
    "loss-alone": {"outputs": ("loss",)},
    "none": {"reduce": False, **RECOMPUTE},
    "one-pass": ONE_PASS,
    "one-pass-alone": {"outputs": ("loss", "grad")},
    "aux": {"outputs": (*RECOMPUTE["outputs"], *AUX)},
    "one-pass-aux": ONE_PASS_AUX,
    "softcap": {"softcap": 5.0, **ONE_PASS},
    "padding": {"num_classes": 5, **ONE_PASS},
    "not-skipped": {"skip_ignored": False, **ONE_PASS},
    "hidden-frozen": {"needs_hidden": False, **ONE_PASS},
    "weight-frozen": {"needs_weight": False, **ONE_PASS},
    "narrow-products": {"dtype": torch.bfloat16, **ONE_PASS},
}
LAYOUTS = {
    "contiguous": lambda tensor: tensor,
    "transposed": lambda tensor: tensor.t().contiguous().t(),
    "strided": lambda tensor: tensor.repeat_interleave(2, 1)[:, ::2],
}


def specs(backend, head, outputs=RECOMPUTE["outputs"], reduce=True, **options):
    """All that an operator takes beside tensors."""
    has_bias = head.bias is not None
    projection = Projection(
        softcap=0.0, chunk_bytes=100, skip_ignored=True, dtype=head.hidden.dtype,
        sum_dtype=accumulator_dtype(head.hidden.dtype), num_classes=head.weight.shape[0],
        needs_hidden=True, needs_weight=True, needs_bias=has_bias,
    )  # fmt: skip
    request = RowRequest.of(TERMS, -100, *outputs, reduce=reduce)
    return Specs(request, Where(backend), projection._replace(**options))


def problem(device, dtype=torch.float32, shape=(7,), bias=True):
    head = random_head(shape, 4, 6, dtype, device, bias)
    head.target.clamp_(max=4)
    return head.with_ignored(1) if shape[0] > 1 else head


def loss_args(head, backend, per_row=False, weighted=False, **options):
    device = head.hidden.device
    numbers = {"dtype": accumulator_dtype(head.hidden.dtype), "device": device}
    scale = torch.rand(head.target.shape if per_row else (), **numbers)
    weights = torch.rand(len(TERMS), **numbers) if weighted else None
    return *head, scale, weights, *specs(backend, head, **options).flat


def grad_args(head, backend, **options):
    *tensors, scale, _ = loss_args(head, backend, per_row=True)[:6]
    spec = specs(backend, head, **{**options, **RECOMPUTE})
    _, rows, _ = spec.split(OPS.linear_loss(*tensors, scale, None, *spec.flat))
    return *tensors, scale, rows.saved, *spec.flat


def with_aux(options):
    return {"outputs": (*options["outputs"], *AUX)}


def opcheck(operator, args):
    result = torch.library.opcheck(operator.default, args)
    assert set(result.values()) == {"SUCCESS"}, result


def test_every_operator_is_checked_here():
    registered = {
        name.partition("::")[2].partition(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("anl_kernels::linear")
    }
    of_log_probs = {"linear_log_probs", "linear_log_probs_grad"}
    assert registered == {"linear_loss", "linear_grad"} | of_log_probs


@pytest.mark.parametrize("options", SPECS.values(), ids=list(SPECS))
def test_linear_loss(options, fastest, device):
    opcheck(OPS.linear_loss, loss_args(problem(device), fastest, **options))


@pytest.mark.parametrize("options", [RECOMPUTE, ONE_PASS], ids=["loss", "one-pass"])
def test_backends(options, quick, device):
    opcheck(OPS.linear_loss, loss_args(problem(device), quick, **options))


@pytest.mark.parametrize("options", [RECOMPUTE, ONE_PASS], ids=["loss", "one-pass"])
@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_linear_loss_of_factors(weighted, per_row, options, fastest, device):
    args = loss_args(problem(device), fastest, per_row, weighted, **with_aux(options))
    opcheck(OPS.linear_loss, args)


LOG_PROBS = {
    "plain": {},
    "softcap-and-temperature": {"softcap": 5.0, "temperature": 0.7},
    "padding": {"num_classes": 5},
    "not-skipped": {"skip_ignored": False},
    "weight-frozen": {"needs_weight": False},
}


@pytest.mark.parametrize("options", LOG_PROBS.values(), ids=list(LOG_PROBS))
def test_log_probs_of_several_classes(options, fastest, device):
    head = problem(device)
    classes = torch.stack([head.target, head.target.clamp(max=0), head.target.flip(0)], -1)
    request = RowRequest.of(CROSS_ENTROPY, -100, "row_losses", "saved", reduce=False)
    flat = specs(fastest, head, **options)._replace(request=request).flat
    tensors = head.hidden, head.weight, head.bias, classes, any_class(classes, -100)
    opcheck(OPS.linear_log_probs, (*tensors, *flat))
    log_probs, label, saved = OPS.linear_log_probs(*tensors, *flat)
    upstream = torch.rand_like(log_probs).masked_fill(classes == -100, 0)
    opcheck(OPS.linear_log_probs_grad, (*tensors, upstream, log_probs, label, saved, *flat))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [0, 7])
def test_linear_loss_of_dtypes(rows, dtype, fastest, device):
    head = problem(device, dtype, (rows,), bias=rows == 0)
    args = loss_args(head, fastest, sum_dtype=dtype, **ONE_PASS)
    opcheck(OPS.linear_loss, args)


@pytest.mark.parametrize("options", [{}, {"softcap": 5.0}], ids=["plain", "softcap"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_linear_grad(dtype, options, fastest, device):
    opcheck(OPS.linear_grad, grad_args(problem(device, dtype), fastest, **options))


@pytest.mark.parametrize("rows", [2, 100])
@pytest.mark.parametrize("weight", LAYOUTS.values(), ids=list(LAYOUTS))
@pytest.mark.parametrize("hidden", LAYOUTS.values(), ids=list(LAYOUTS))
def test_fake_outputs_have_the_strides_of_real_ones(hidden, weight, rows, fastest, device):
    head = problem(device)
    head = head._replace(hidden=hidden(head.hidden), weight=weight(head.weight))
    args = loss_args(head, fastest, chunk_bytes=rows * 24, **ONE_PASS_AUX)
    with torch._subclasses.FakeTensorMode() as mode:
        fakes = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in args]
        fake = OPS.linear_loss(*fakes)
    for real, wanted in zip(OPS.linear_loss(*args), fake, strict=True):
        assert (real.shape, real.stride(), real.dtype) == (
            wanted.shape,
            wanted.stride(),
            wanted.dtype,
        )


@pytest.mark.parametrize("options", SPECS.values(), ids=list(SPECS))
def test_every_output_is_written(options, quick, device, poisoned):
    head = problem(device)
    made = [*OPS.linear_loss(*loss_args(head, quick, **options))]
    if "saved" in options["outputs"]:
        made += OPS.linear_grad(*grad_args(head, quick, **options))
    assert not any(tensor.isnan().any() for tensor in made)


@pytest.mark.parametrize("options", [RECOMPUTE, ONE_PASS], ids=["loss", "one-pass"])
def test_inputs_may_require_grad(options, fastest, device):
    """It is the Function that is differentiable; an operator takes numbers."""
    head = problem(device)
    args = loss_args(head, fastest, **options)
    made = OPS.linear_loss(*head.leaves(), *args[4:])
    assert all(map(torch.equal, made, OPS.linear_loss(*args)))
