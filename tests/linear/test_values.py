"""Losses and gradients in float64 are those of the logits as a whole."""

import pytest
import torch

import anl_kernels as ak
from tests.cases import CASES, KINDS, over
from tests.formulas import evaluate
from tests.helpers import error
from tests.linear.heads import (
    assert_like,
    chunks_of,
    fused,
    fused_loss,
    logits_of,
    random_head,
    unfused,
    with_gradients,
)

pytestmark = pytest.mark.usefixtures("poisoned")


def formula(head, terms, logit_softcap=None):
    return evaluate(terms, logits_of(*head[:3], logit_softcap), head.target).sum()


def assert_like_formula(terms, device, rows, softcap=None, bias=True):
    head = random_head(device=device, bias=bias)
    options = {"logit_softcap": softcap}
    ours = fused(head, terms, reduction="sum", **options, **chunks_of(rows, head))
    theirs = with_gradients(formula, head, terms, **options)
    for actual, wanted in zip(ours, theirs, strict=True):
        assert error(actual, wanted) <= 1e-13


@over()
def test_every_loss(terms, quick, device):
    assert_like_formula(terms, device, rows=4)


@over(KINDS)
def test_kinds_on_triton(terms, triton_backend, device):
    assert_like_formula(terms, device, rows=8, softcap=5.0)


@pytest.mark.parametrize("rows", [1, 3, 100])
@pytest.mark.parametrize("bias", [False, True])
@over(KINDS)
def test_bias_and_chunks(terms, bias, rows, quick, device):
    assert_like_formula(terms, device, rows, bias=bias)


@pytest.mark.parametrize("softcap", [0.5, 5.0, 30])
@over(KINDS)
def test_softcap(terms, softcap, quick, device):
    assert_like_formula(terms, device, 4, softcap)


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@over(KINDS)
def test_reductions(terms, reduction, softcap, quick, device):
    head = random_head(device=device).with_ignored(2, 10)
    options = {"reduction": reduction, "logit_softcap": softcap}
    options["sample_weight"] = torch.rand(11, dtype=torch.float64, device=device)
    assert_like(
        fused(head, terms, **options, **chunks_of(4, head)), unfused(head, terms, **options)
    )


@pytest.mark.parametrize("skip", [False, True])
@over(KINDS)
def test_upstream_gradient_of_each_row(terms, skip, quick, device):
    head = random_head(device=device).with_ignored(0, 5)
    options = {"reduction": "none", "upstream": torch.randn_like(head.hidden[:, 0])}
    ours = fused(head, terms, skip_ignored=skip, **options, **chunks_of(4, head))
    assert_like(ours, unfused(head, terms, **options))


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (2, 5), (2, 1, 3)], ids=str)
def test_shapes(shape, reduction, backend, device):
    head = random_head(shape, device=device)
    options = {"reduction": reduction}
    ours = fused(head, CASES["ANL-CE"], **options, **chunks_of(3, head))
    assert ours[0].shape == (shape if reduction == "none" else ())
    assert_like(ours, unfused(head, CASES["ANL-CE"], **options))


LAYOUTS = {
    "hidden-transposed": lambda h: h._replace(hidden=h.hidden.t().contiguous().t()),
    "weight-transposed": lambda h: h._replace(weight=h.weight.t().contiguous().t()),
    "hidden-strided": lambda h: h._replace(hidden=h.hidden.repeat_interleave(2, 1)[:, ::2]),
    "weight-strided": lambda h: h._replace(weight=h.weight.repeat_interleave(2, 0)[::2]),
    "hidden-expanded": lambda h: h._replace(hidden=h.hidden[:1].expand(11, -1)),
    "bias-expanded": lambda h: h._replace(bias=h.bias[:1].expand(9)),
    "target-strided": lambda h: h._replace(target=h.target.repeat_interleave(2)[::2]),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("arrange", LAYOUTS.values(), ids=list(LAYOUTS))
def test_layouts(arrange, dtype, quick, device):
    plain = random_head(device=device, dtype=dtype)
    arranged = arrange(plain)
    plain = plain._replace(hidden=arranged.hidden.contiguous(), bias=arranged.bias.contiguous())
    for head in (arranged, plain):
        for tensor in head.parameters:
            tensor.requires_grad_()
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6

    def gradients(head):
        loss = fused_loss(head, CASES["ANL-CE"], **chunks_of(4, head))
        return torch.autograd.grad(3 * loss, head.parameters)

    assert_like(gradients(arranged), gradients(plain), tolerance)


@pytest.mark.parametrize("labels", [torch.int32, torch.int64])
@pytest.mark.parametrize("skip", [False, True])
def test_label_dtypes(labels, skip, backend, device):
    head = random_head(device=device).with_ignored(3)
    narrow = head._replace(target=head.target.to(labels))
    ours = fused(narrow, CASES["ANL-CE"], skip_ignored=skip, **chunks_of(4, head))
    assert_like(ours, unfused(head, CASES["ANL-CE"]))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("shape", [(0,), (2, 0)], ids=str)
def test_no_rows(shape, skip, reduction, backend, device):
    head = random_head(shape, dtype=torch.float32, device=device)
    loss, *grads = fused(head, CASES["ANL-CE"], reduction=reduction, skip_ignored=skip)
    assert loss.shape == (shape if reduction == "none" else ())
    assert loss.sum() == 0
    assert not any(grad.any() for grad in grads)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_inputs_are_left_alone(dtype, softcap, reduction, quick, device):
    head = random_head(dtype=dtype, device=device).with_ignored(4).leaves()
    before = [tensor.detach().clone() for tensor in head]
    versions = [tensor._version for tensor in head]
    options = {"logit_softcap": softcap, "reduction": reduction}
    (2 * fused_loss(head, CASES["ANL-CE"], **options, **chunks_of(4, head))).sum().backward()
    assert all(map(torch.equal, head, before))
    assert [tensor._version for tensor in head] == versions


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_bias_of_minus_infinity_takes_a_class_away(dtype, quick, device):
    head = random_head(dtype=dtype, device=device)
    head.bias[4] = -torch.inf
    head.target[head.target == 4] = 0
    left = [0, 1, 2, 3, 5, 6, 7, 8]
    fewer = head._replace(weight=head.weight[left], bias=head.bias[left])
    fewer = fewer._replace(target=torch.where(head.target > 4, head.target - 1, head.target))
    terms = ak.NCE() + ak.CE(0.1)
    loss, by_hidden, by_weight, by_bias = fused(head, terms, **chunks_of(4, head))
    wanted = fused(fewer, terms, **chunks_of(4, head))
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    assert_like([loss, by_hidden, by_weight[left], by_bias[left]], wanted, tolerance)
    assert not by_weight[4].any()
    assert by_bias[4] == 0
