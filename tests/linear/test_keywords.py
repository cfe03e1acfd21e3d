"""The keywords mean what they mean for logits."""

import pytest
import torch

import anl_kernels as ak
from tests.cases import CASES, KINDS, over
from tests.helpers import error
from tests.linear.heads import (
    assert_like,
    chunks_of,
    fused,
    fused_loss,
    random_head,
    unfused,
    unfused_loss,
)

REDUCTIONS = ("mean", "sum", "none")
TERMS = CASES["ANL-CE"]

pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.fixture
def head(device):
    return random_head((3, 4), device=device).with_ignored(1, 7)


def assert_like_unfused(head, terms=TERMS, **options):
    ours = fused(head, terms, **options, **chunks_of(5, head))
    assert_like(ours, unfused(head, terms, **options))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_weight(reduction, backend, head, device):
    weight = torch.rand(9, dtype=torch.float64, device=device)
    assert_like_unfused(head, weight=weight, reduction=reduction)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_sample_weight(reduction, quick, head, device):
    factors = torch.rand(3, 4, dtype=torch.float64, device=device)
    assert_like_unfused(head, sample_weight=factors, reduction=reduction)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_sample_weight_gets_a_gradient(reduction, dtype, skip, quick, head, device):
    head = head.to(dtype)
    factors = torch.rand(3, 4, device=device, requires_grad=True)
    upstream = torch.randn(head.target.shape if reduction == "none" else (), device=device)
    options = {"sample_weight": factors, "reduction": reduction}
    grads = []
    for loss_of, more in ((fused_loss, {"skip_ignored": skip}), (unfused_loss, {})):
        loss = loss_of(head, TERMS, **options, **more)
        grads += torch.autograd.grad(loss, factors, upstream.to(loss.dtype))
    assert error(*grads) <= 1e-6
    assert not grads[0][head.target == -100].any()


@pytest.mark.parametrize("ignore_index", [-100, 2, -1, 50])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_ignore_index(reduction, ignore_index, quick, head):
    head.target[head.target == -100] = ignore_index
    assert_like_unfused(head, reduction=reduction, ignore_index=ignore_index)


@pytest.mark.parametrize("class_scale", [7.5, "auto"])
def test_class_scale(class_scale, quick, head):
    assert_like_unfused(head, class_scale=class_scale)


@pytest.mark.parametrize("class_scale", [1.0, "auto"])
def test_class_scale_goes_by_the_classes_without_padding(class_scale, quick, head):
    padded, options = with_padding(head), {"class_scale": class_scale}
    loss = fused_loss(padded, TERMS, num_classes=9, **options)
    assert_like([loss], [fused_loss(head, TERMS, **options)])


AUX = ("term_losses", "lse", "p_y", "argmax")


def assert_like_aux(ours, theirs, shape, counted=...):
    for name in AUX:
        actual, wanted = getattr(ours, name), getattr(theirs, name)
        assert actual.shape == ((2, *shape) if name == "term_losses" else shape)
        wanted = wanted.reshape(actual.shape)
        torch.testing.assert_close(actual[..., counted], wanted[..., counted])


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("shape", [(), (7,), (3, 4)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_aux(dtype, shape, softcap, quick, device):
    head = random_head(shape, dtype=dtype, device=device)
    options = {"return_aux": True, "logit_softcap": softcap}
    loss, ours = fused_loss(head, TERMS, **options, **chunks_of(5, head))
    flat = head._replace(hidden=head.hidden.reshape(-1, 6), target=head.target.reshape(-1))
    logits = torch.nn.functional.linear(flat.hidden, flat.weight, flat.bias)
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    wanted, theirs = ak.robust_loss(logits, flat.target, TERMS, return_aux=True)
    torch.testing.assert_close(loss, wanted)
    assert_like_aux(ours, theirs, shape)


@pytest.mark.parametrize("skip", [None, False])
def test_aux_of_ignored_rows(skip, quick, head):
    _, ours = fused_loss(head, TERMS, return_aux=True, skip_ignored=skip, **chunks_of(5, head))
    logits = (head.hidden @ head.weight.t() + head.bias).flatten(0, 1)
    _, theirs = ak.robust_loss(logits, head.target.flatten(), TERMS, return_aux=True)
    assert_like_aux(ours, theirs, (3, 4))
    assert not ours.p_y[head.target == -100].any()


@pytest.mark.parametrize("wanted", ["p_y", ["term_losses"], ("p_y", "term_losses")])
def test_aux_of_skipped_rows_is_zero(wanted, quick, head):
    _, aux = fused_loss(head, TERMS, return_aux=wanted, skip_ignored=True)
    ignored = head.target == -100
    for value in vars(aux).values():
        if value is not None:
            assert not value[..., ignored].any()
            assert value[..., ~ignored].all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("wanted", ["lse", ["p_y"], ("term_losses", "argmax"), []])
def test_aux_holds_what_was_asked_for(wanted, reduction, backend, head):
    made = fused_loss(head.leaves(), TERMS, return_aux=wanted, reduction=reduction)
    if not wanted:
        assert isinstance(made, torch.Tensor)
        return
    named = {name: value for name, value in vars(made[1]).items() if value is not None}
    assert set(named) == ({wanted} if isinstance(wanted, str) else set(wanted))
    assert not any(value.requires_grad for value in named.values())


def test_aux_of_no_rows(quick, device):
    _, aux = fused_loss(random_head((2, 0), device=device), TERMS, return_aux=True)
    assert aux.term_losses.shape == (2, 2, 0)
    assert aux.lse.shape == aux.p_y.shape == aux.argmax.shape == (2, 0)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_asking_for_aux_changes_no_gradient(reduction, quick, head):
    def gradients(**options):
        leaves = head.leaves()
        made = fused_loss(leaves, TERMS, reduction=reduction, **chunks_of(5, head), **options)
        loss = made[0] if options else made
        return torch.autograd.grad(loss.sum(), leaves.parameters)

    assert all(map(torch.equal, gradients(return_aux="p_y"), gradients()))


def with_padding(head, rows=4):
    """The same head with more rows of weight and bias, full of numbers that would matter."""
    more = 9 * torch.ones(rows, *head.weight.shape[1:]).to(head.weight)
    bias = None if head.bias is None else torch.cat([head.bias, more[:, 0]])
    return head._replace(weight=torch.cat([head.weight, more]), bias=bias)


@pytest.mark.parametrize("rows", [2, 100])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@over(("ANL-CE", "AMSE"))
def test_padding_is_not_there(terms, dtype, bias, softcap, rows, quick, device):
    head = random_head(dtype=dtype, bias=bias, device=device).with_ignored(3)
    options = {"logit_softcap": softcap} | chunks_of(rows, head)
    loss, by_hidden, *rest = fused(with_padding(head), terms, num_classes=9, **options)
    wanted = fused(head, terms, **options)
    tolerance = max(1e-13, torch.finfo(dtype).eps)
    for actual, value in zip([loss, by_hidden, *(g[:9] for g in rest)], wanted, strict=True):
        assert error(actual, value) <= tolerance
    assert not any(grad[9:].any() for grad in rest)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_no_padding(reduction, backend, head):
    options = {"reduction": reduction}
    assert_like(fused(head, TERMS, num_classes=9, **options), fused(head, TERMS, **options))


def test_padding_is_never_the_prediction(quick, head):
    _, aux = fused_loss(with_padding(head), TERMS, num_classes=9, return_aux="argmax")
    _, wanted = fused_loss(head, TERMS, return_aux="argmax")
    assert torch.equal(aux.argmax, wanted.argmax)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_learned_weights_of_terms(dtype, skip, reduction, quick, head, device):
    leaves = head.to(dtype).leaves()
    alpha = torch.tensor(2.0, device=device, requires_grad=True)
    terms = alpha * ak.NCE() + 3.0 * ak.NNCE()
    options = {"reduction": reduction}
    by_alpha, *grads = torch.autograd.grad(
        fused_loss(leaves, terms, skip_ignored=skip, **options, **chunks_of(5, leaves)).sum(),
        [alpha, *leaves.parameters],
    )
    nce = fused_loss(leaves, ak.NCE(), **options).sum()
    torch.testing.assert_close(by_alpha, nce, check_dtype=False, rtol=1e-5, atol=0)
    plain = fused(head.to(dtype), 2.0 * ak.NCE() + 3.0 * ak.NNCE(), **options)[1:]
    for grad, wanted in zip(grads, plain, strict=True):
        assert error(grad, wanted) <= max(1e-6, torch.finfo(dtype).eps)


def test_learned_weights_on_triton(triton_backend, head, device):
    alpha = torch.tensor(2.0, device=device, requires_grad=True)
    loss = fused_loss(head, alpha * ak.NCE() + ak.MAE(), **chunks_of(5, head))
    (by_alpha,) = torch.autograd.grad(loss, alpha)
    torch.testing.assert_close(by_alpha, fused_loss(head, ak.NCE()), check_dtype=False)


@pytest.mark.parametrize("label", [-1, 9, 10**9])
@pytest.mark.parametrize("skip", [False, True])
def test_a_wrong_label_makes_its_row_nan_where_it_is_not_checked(
    label, skip, quick, head, monkeypatch
):
    monkeypatch.setattr("anl_kernels.rows.labels.recorded_for_others", lambda: True)
    head.target[1, 2] = label
    losses = fused_loss(head, TERMS, reduction="none", skip_ignored=skip, **chunks_of(5, head))
    assert losses.isnan().nonzero().tolist() == [[1, 2]]


@over(KINDS)
def test_a_nan_in_a_row_stays_in_its_losses(terms, quick, head):
    head.hidden[1, 2, 0] = torch.nan
    losses = fused_loss(head, terms, reduction="none", **chunks_of(5, head))
    assert losses.isnan().nonzero().tolist() == [[1, 2]]
