"""Under autocast the products are in its dtype, and gradients in that of the parameters."""

import pytest
import torch

import anl_kernels as ak
from tests.cases import CASES, KINDS, over
from tests.formulas import evaluate
from tests.helpers import error
from tests.linear.heads import chunks_of, fused, fused_loss, logits_of, random_head, with_gradients
from tests.linear.test_accuracy import EPSILON, of_rounded_logits

TERMS = CASES["ANL-CE"]
DTYPES = [torch.bfloat16, torch.float16]


@pytest.fixture
def head(device):
    return random_head((64,), 32, 300, torch.float32, device)


def under_autocast(loss_of, dtype):
    def loss(head, *args, **options):
        with torch.autocast(head.hidden.device.type, dtype=dtype):
            return loss_of(head, *args, **options)

    return loss


def mean_of_formula(head, terms):
    return evaluate(terms, logits_of(*head[:3]), head.target).mean()


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_that_of_the_rounded_tensors(dtype, reduction, quick, head):
    options = {"reduction": reduction} | chunks_of(16, head, dtype)
    ours = with_gradients(under_autocast(fused_loss, dtype), head, TERMS, **options)
    narrow = fused(head.to(dtype), TERMS, **options)
    assert torch.equal(ours[0], narrow[0])
    for actual, wanted in zip(ours, narrow, strict=True):
        assert actual.dtype == torch.float32
        assert error(actual, wanted) <= torch.finfo(dtype).eps


@pytest.mark.parametrize("rows", [16, 64])
@over(KINDS)
def test_no_worse_than_eager(terms, rows, quick, head, device):
    dtype = torch.bfloat16
    upstream = torch.full((64,), 1 / 64, dtype=torch.float64, device=device)
    loss = of_rounded_logits(head.to(dtype), terms, None, rounded=False)
    truth = with_gradients(loss, head.to(dtype).to(torch.float64), upstream=upstream)
    eager = with_gradients(under_autocast(mean_of_formula, dtype), head, terms)
    options = chunks_of(rows, head, dtype)
    ours = with_gradients(under_autocast(fused_loss, dtype), head, terms, **options)
    # Of several chunks each product for the weight is rounded, where eager's one is.
    roundings = torch.finfo(dtype).eps if rows < 64 else 0
    for i, more in ((1, 0), (2, roundings), (3, 0)):
        assert error(ours[i], truth[i]) <= error(eager[i], truth[i]) + more + EPSILON


def test_float32_parameters_sum_in_float32(quick, head):
    """So autocast gives more digits than a head that is bfloat16 itself."""
    dtype, options = torch.bfloat16, chunks_of(2, head, torch.bfloat16)
    whole = with_gradients(under_autocast(fused_loss, dtype), head, TERMS)
    wide = with_gradients(under_autocast(fused_loss, dtype), head, TERMS, **options)
    narrow = fused(head.to(dtype), TERMS, accum_dtype=dtype, **options)
    assert error(wide[2], whole[2]) < error(narrow[2], whole[2])


@pytest.mark.parametrize("states", [torch.float32, torch.bfloat16])
def test_dtypes_may_differ(states, quick, head):
    dtype = torch.bfloat16
    mixed = head._replace(hidden=head.hidden.to(states))
    _, by_hidden, by_weight, by_bias = with_gradients(
        under_autocast(fused_loss, dtype), mixed, TERMS
    )
    assert by_hidden.dtype == states
    assert by_weight.dtype == by_bias.dtype == torch.float32


def test_float64_is_not_cast(quick, head):
    wide = head.to(torch.float64)
    ours = with_gradients(under_autocast(fused_loss, torch.bfloat16), wide, TERMS)
    assert all(map(torch.equal, ours, fused(wide, TERMS)))


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("skip", [False, True])
def test_a_backward_pass_computes_as_the_forward_pass_did(skip, reduction, quick, head):
    head = head.with_ignored(3).leaves()
    options = {"reduction": reduction, "skip_ignored": skip} | chunks_of(16, head)
    wanted = torch.autograd.grad(fused_loss(head, TERMS, **options).sum(), head.parameters)
    loss = fused_loss(head, TERMS, **options).sum()
    with torch.autocast(head.hidden.device.type, dtype=torch.bfloat16):
        ours = torch.autograd.grad(loss, head.parameters)
    assert all(map(torch.equal, ours, wanted))


def test_a_module(quick, head, device):
    criterion = ak.LinearRobustLoss(torch.nn.Linear(32, 300).to(device), TERMS)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        loss = criterion(head.hidden, head.target)
    loss.backward()
    assert loss.dtype == torch.float32
    assert criterion.head.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_without_it_dtypes_must_agree(name, backend, head):
    mixed = head._replace(**{name: getattr(head, name).bfloat16()})
    with pytest.raises(TypeError, match=rf"linear_{name} .*float32.*bfloat16.*autocast"):
        fused_loss(mixed, TERMS)
