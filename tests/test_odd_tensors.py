"""Tensors that are not dense, or without a shape, for every argument that is a tensor."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.masked import masked_tensor

import anl_kernels as ak
from anl_kernels.backends.choice import why_not

LOGITS, TARGET = torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 4, 2])
HIDDEN, WEIGHT, ONES = torch.randn(6, 4), torch.randn(5, 4), torch.ones(6)


def loss(logits=LOGITS, target=TARGET, **options):
    return ak.robust_loss(logits, target, ak.GCE(), **options)


def linear(hidden=HIDDEN, weight=WEIGHT, target=TARGET, bias=None):
    return ak.linear_robust_loss(hidden, weight, target, ak.GCE(), bias)


ARGUMENTS = {
    "logits": (loss, LOGITS),
    "logits-softmax": (ak.softmax, LOGITS),
    "logits-log_prob": (lambda z: ak.log_prob(z, TARGET), LOGITS),
    "logits-entropy": (ak.entropy_regulariser, LOGITS),
    "target": (lambda y: loss(target=y), TARGET),
    "target-linear": (lambda y: linear(target=y), TARGET),
    "classes": (lambda y: ak.log_prob(LOGITS, y), TARGET),
    "weight": (lambda w: loss(weight=w), torch.ones(5)),
    "weight-module": (lambda w: ak.RobustLoss(ak.CE(), weight=w), torch.ones(5)),
    "weight-LogProbLoss": (lambda w: ak.LogProbLoss(torch.neg, weight=w), torch.ones(5)),
    "sample_weight": (lambda w: loss(sample_weight=w), ONES),
    "hidden": (linear, HIDDEN),
    "linear_weight": (lambda w: linear(weight=w), WEIGHT),
    "linear_bias": (lambda b: linear(bias=b), torch.ones(5)),
    "counted": (lambda c: ak.entropy_regulariser(LOGITS, counted=c), TARGET > 1),
    "parameters": (lambda p: ak.l1_penalty([p]), LOGITS),
    "rows": (ak.column_means, LOGITS),
}


def jagged(tensor):
    parts = [tensor[:3].detach(), tensor[3:].detach()]
    return torch.nested.nested_tensor(parts, layout=torch.jagged)


ODD = {
    "masked": (lambda t: masked_tensor(t, torch.ones_like(t, dtype=torch.bool)), "mask"),
    "sparse": (lambda t: t.to_sparse(), "sparse_coo"),
    "nested": (lambda t: torch.nested.nested_tensor([t[:3], t[3:]]), "nested"),
    "jagged": (jagged, "nested|jagged"),
    "lazy": (lambda t: nn.UninitializedParameter(), "Uninitialized"),
    "numpy": (lambda t: t.numpy(), "ndarray"),
    "complex": (lambda t: t.cfloat(), "complex64"),
    "quantised": (lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8), "qint8"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("make", "word"), ODD.values(), ids=list(ODD))
@pytest.mark.parametrize(("call", "tensor"), ARGUMENTS.values(), ids=list(ARGUMENTS))
def test_what_is_refused(call, tensor, make, word, request):
    argument = request.node.callspec.id.partition("-")[0]
    with pytest.raises(TypeError, match=word) as caught:
        call(make(tensor))
    assert str(caught.value).startswith(argument)
    assert ";" in str(caught.value) or "parameters" in argument  # what to do


@pytest.mark.filterwarnings("ignore")
def test_the_cures_that_errors_name():
    for given in (ODD["nested"][0](LOGITS), jagged(LOGITS)):
        assert torch.equal(loss(torch.cat(given.unbind())), loss())
    assert torch.equal(loss(ODD["masked"][0](LOGITS).get_data()), loss())
    assert torch.equal(loss(LOGITS.to_sparse().to_dense()), loss())


@pytest.mark.parametrize("kind", [nn.Parameter, nn.Buffer])
def test_parameters_and_buffers_are_tensors(kind):
    assert torch.equal(loss(kind(LOGITS)), loss())


def test_heads_that_are_refused():
    quantised = torch.ao.nn.quantized.dynamic.Linear(4, 5)
    for head, word in ((quantised, "quantized.dynamic"), (nn.LazyLinear(5), "LazyLinear")):
        with pytest.raises(TypeError, match=f"head must .*{word}.*;"):
            ak.LinearRobustLoss(head, ak.CE())
    lazy = nn.LazyLinear(5)
    lazy(HIDDEN)
    assert ak.LinearRobustLoss(lazy, ak.CE())(HIDDEN, TARGET).isfinite()


@pytest.mark.parametrize("weight", [[1.0] * 5, np.ones(5), torch.ones(5).int()])
@pytest.mark.parametrize("make", [ak.RobustLoss, ak.LogProbLoss])
def test_the_weight_of_a_module(make, weight):
    first = ak.CE() if make is ak.RobustLoss else torch.neg
    with pytest.raises(TypeError, match="weight must be"):
        make(first, weight=weight)
    with pytest.raises(ValueError, match=r"weight must have shape \(K,\)"):
        make(first, weight=torch.ones(5, 1))
    with pytest.raises(ValueError, match=r"weight must not require grad.*detach"):
        make(first, weight=nn.Parameter(torch.ones(5)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("rows", [0, 6])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_head_without_features(backend, device, dtype, with_bias, rows, reduction):
    hidden = torch.randn(rows, 0, dtype=dtype, device=device, requires_grad=True)
    weight = torch.randn(5, 0, dtype=dtype, device=device, requires_grad=True)
    bias = torch.randn(5, dtype=dtype, device=device, requires_grad=True) if with_bias else None
    target = TARGET[:rows].to(device)
    terms, options = 2.0 * ak.GCE() + ak.NCE(), {"reduction": reduction}
    fused = ak.linear_robust_loss(hidden, weight, target, terms, bias, **options)
    plain = ak.robust_loss(nn.functional.linear(hidden, weight, bias), target, terms, **options)
    torch.testing.assert_close(fused, plain)
    leaves = [t for t in (hidden, weight, bias) if t is not None]
    ours = torch.autograd.grad(fused.sum(), leaves)
    wanted = torch.autograd.grad(plain.sum(), leaves, allow_unused=True)
    for grad, tensor, other in zip(ours, leaves, wanted, strict=True):
        assert grad.shape == tensor.shape
        torch.testing.assert_close(grad, torch.zeros_like(tensor) if other is None else other)


@pytest.mark.skipif(why_not("cpu") is not None, reason="no C++ kernels")
def test_a_head_without_features_in_a_batch_of_several_dimensions():
    hidden, target = torch.randn(2, 3, 0), TARGET.view(2, 3)
    made = ak.linear_robust_loss(hidden, torch.randn(5, 0), target, ak.MAE(), reduction="none")
    torch.testing.assert_close(made, torch.full((2, 3), 0.8))


class Marked(torch.Tensor):
    """A subclass that keeps its type through operators, as PyTorch has it by default."""


def test_a_subclass_keeps_its_type(device):
    logits = torch.randn(3, 7, device=device, requires_grad=True)
    target = torch.tensor([0, 3, 6], device=device)
    loss = ak.robust_loss(logits.as_subclass(Marked), target, ak.NCE())
    assert type(loss) is Marked
    loss.backward()
    wanted = torch.autograd.grad(ak.robust_loss(logits, target, ak.NCE()), logits)
    torch.testing.assert_close(logits.grad.as_subclass(torch.Tensor), wanted[0])
