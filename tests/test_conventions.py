"""Shapes, labels, weights and reductions are those of ``torch.nn.functional.cross_entropy``."""

import pytest
import torch
import torch.nn.functional as F

import anl_kernels as ak
from tests.cases import CASES, KINDS, over
from tests.helpers import error, expected, loss_and_grad, random_rows, rows

SHAPES = [(5,), (6, 5), (2, 5, 3), (2, 5, 3, 2), (1, 5, 1, 1)]
REDUCTIONS = ("mean", "sum", "none")
IGNORE = [-100, 2, -1, 7]  # outside [0, 5) and inside


def problem(shape, device, dtype=torch.float64, labels=torch.int64, scale=2.0):
    logits = (scale * torch.randn(shape, dtype=torch.float64, device=device)).to(dtype)
    batch = shape[:1] + shape[2:] if len(shape) > 1 else ()
    target = torch.randint(5, batch, device=device, dtype=labels)
    return logits, target


def torch_loss_and_grad(logits, target, **options):
    logits = logits.detach().clone().requires_grad_()
    loss = F.cross_entropy(logits, target.long(), **options)
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    return loss.detach(), grad


def assert_like_torch(ours, theirs, tolerance=1e-12):
    for actual, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("labels", [torch.int32, torch.int64])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape, reduction, labels, backend, device):
    logits, target = problem(shape, device, labels=labels)
    options = {"reduction": reduction}
    ours = loss_and_grad(logits, target, ak.CE(), **options)
    assert_like_torch(ours, torch_loss_and_grad(logits, target, **options))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@over(KINDS)
def test_shapes_of_every_kind_of_term(terms, shape, backend, device):
    logits, target = problem(shape, device)
    losses, grad = expected(logits, target, terms)
    ours, our_grad = loss_and_grad(logits, target, terms, reduction="none")
    assert_like_torch((ours, our_grad), (losses, grad))


@pytest.mark.parametrize("ignore_index", IGNORE)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_weight_and_ignore_index(reduction, weighted, ignore_index, backend, device):
    logits, target = problem((4, 5, 3), device)
    target[0, 0] = target[2, 1] = ignore_index
    options = {"reduction": reduction, "ignore_index": ignore_index}
    if weighted:
        options["weight"] = torch.rand(5, dtype=torch.float64, device=device) + 0.1
    ours = loss_and_grad(logits, target, ak.CE(), **options)
    assert_like_torch(ours, torch_loss_and_grad(logits, target, **options))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.1, 1.0])
def test_label_smoothing(smoothing, reduction, backend, device):
    logits, target = problem((6, 5), device)
    target[1] = -100
    ours = loss_and_grad(logits, target, ak.CE(smoothing), reduction=reduction)
    theirs = torch_loss_and_grad(logits, target, label_smoothing=smoothing, reduction=reduction)
    assert_like_torch(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@over()
def test_reductions_weigh_the_row_losses(terms, reduction, dtype, backend, device):
    logits, target = problem((5, 5), device, dtype)
    target[3] = -100
    weight = torch.tensor([0.5, 1, 2, 0, 3], device=device)
    options = {"sample_weight": torch.rand(5, device=device) + 0.5}
    counted = target != -100
    labels = target.clamp(min=0)
    row_weight = torch.ones(5, device=device, dtype=torch.float64)
    if not any(getattr(term, "label_smoothing", 0) for _, term in terms):
        options["weight"] = weight
        row_weight = weight[labels].double()
    row_scale = row_weight * counted * options["sample_weight"]
    if reduction == "mean":
        row_scale = row_scale / (row_weight * counted).sum()

    losses, grad = expected(logits.double(), labels, terms, row_scale)
    wanted = losses * row_scale
    loss, our_grad = loss_and_grad(logits, target, terms, reduction=reduction, **options)

    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert our_grad.dtype == dtype
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert error(loss, wanted if reduction == "none" else wanted.sum()) <= tolerance
    assert error(our_grad, grad) <= max(tolerance, torch.finfo(dtype).eps)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@over()
def test_all_rows_ignored(terms, reduction, backend, device):
    logits, _ = problem((3, 5), device, torch.float32)
    target = torch.full((3,), -100, device=device)
    loss, grad = loss_and_grad(logits, target, terms, reduction=reduction)
    assert torch.equal(loss, torch.zeros_like(loss))
    assert torch.equal(grad, torch.zeros_like(logits))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(0, 5), (0, 5, 3), (2, 5, 0)], ids=str)
def test_no_rows(shape, reduction, backend, device):
    logits, target = problem(shape, device, torch.float32)
    loss, grad = loss_and_grad(logits, target, CASES["ANL-CE"], reduction=reduction)
    assert loss.sum() == 0
    assert loss.shape == (target.shape if reduction == "none" else ())
    assert grad.shape == shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
@over(KINDS)
def test_ignored_rows_may_hold_anything(terms, poison, dtype, backend, device):
    logits, target = problem((4, 5), device, dtype)
    target[1] = -100
    poisoned = logits.clone()
    poisoned[1] = poison
    loss, grad = loss_and_grad(logits, target, terms)
    poisoned_loss, poisoned_grad = loss_and_grad(poisoned, target, terms)
    assert torch.equal(loss, poisoned_loss)
    assert torch.equal(grad, poisoned_grad)
    assert torch.equal(poisoned_grad[1], torch.zeros_like(poisoned_grad[1]))


def test_zero_weights_make_a_zero_mean(backend, device):
    logits, target = problem((3, 5), device)
    loss, grad = loss_and_grad(logits, target, ak.CE(), weight=torch.zeros(5, device=device))
    assert loss == 0
    assert not grad.any()


def test_sample_weight_scales_numerators_only(backend, device):
    logits, target = problem((3, 5), device)
    sample_weight = torch.tensor([2.0, 0.0, 5.0], dtype=torch.float64, device=device)
    losses = ak.robust_loss(logits, target, ak.NCE(), reduction="none")
    mean = ak.robust_loss(logits, target, ak.NCE(), sample_weight=sample_weight)
    torch.testing.assert_close(mean, (losses * sample_weight).sum() / 3)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_sample_weight_gets_a_gradient(reduction, backend, device):
    logits, target = problem((3, 5), device)
    sample_weight = torch.rand(3, dtype=torch.float64, device=device, requires_grad=True)
    losses = ak.robust_loss(logits, target, ak.NCE(), reduction="none")
    loss = ak.robust_loss(
        logits, target, ak.NCE(), sample_weight=sample_weight, reduction=reduction
    )
    (grad,) = torch.autograd.grad(loss.sum(), sample_weight)
    torch.testing.assert_close(grad, losses / 3 if reduction == "mean" else losses)


@pytest.mark.parametrize("num_classes", [5, 40])
@pytest.mark.parametrize("class_scale", [1.0, 7.5, "auto"])
@over(("ANL-CE", "APL", "NGCE", "NFL", "CE"))
def test_class_scale_multiplies_the_normalised_terms(
    terms, class_scale, num_classes, backend, device
):
    logits, target = random_rows(3, num_classes, torch.float64, device)
    factor = class_scale
    if class_scale == "auto":
        K, ten = torch.tensor([num_classes, 10.0], dtype=torch.float64)
        factor = (K * K.log() / (ten * ten.log())).item()
    scaled = sum((weight * factor if term.normalised else weight) * term for weight, term in terms)
    ours = loss_and_grad(logits, target, terms, class_scale=class_scale)
    assert_like_torch(ours, loss_and_grad(logits, target, scaled))


def test_auto_scale_is_one_at_ten_classes(backend, device):
    logits, target = random_rows(3, 10, torch.float64, device)
    ours = loss_and_grad(logits, target, ak.NCE(), class_scale="auto")
    assert_like_torch(ours, loss_and_grad(logits, target, ak.NCE()))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_tensor_weights(dtype, reduction, backend, device):
    logits, target = problem((4, 5), device, dtype)
    logits.requires_grad_()
    alpha = torch.tensor(2.0, device=device, requires_grad=True)
    terms = alpha * ak.NCE() + 3.0 * ak.NNCE()
    loss = ak.robust_loss(logits, target, terms, reduction=reduction).sum()
    by_alpha, by_logits = torch.autograd.grad(loss, (alpha, logits))

    options = {"reduction": reduction}
    nce = ak.robust_loss(logits, target, ak.NCE(), **options).sum()
    value, grad = loss_and_grad(logits, target, 2.0 * ak.NCE() + 3.0 * ak.NNCE(), **options)
    torch.testing.assert_close(by_alpha.double(), nce.detach().double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(loss.detach(), value.sum(), rtol=1e-6, atol=0)
    assert error(by_logits, grad) <= torch.finfo(dtype).eps


def test_tensor_weight_on_another_dtype_and_without_grad(backend, device):
    logits, target = problem((4, 5), device)
    weight = torch.tensor(2.0, dtype=torch.float16)
    ours = loss_and_grad(logits, target, weight * ak.NCE())
    assert_like_torch(ours, loss_and_grad(logits, target, 2.0 * ak.NCE()))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_aux(shape, dtype, backend, device):
    logits, target = problem(shape, device, dtype)
    terms = CASES["ANL-CE"] + ak.ZLoss()
    loss, aux = ak.robust_loss(
        logits,
        target,
        terms,
        reduction="none",
        return_aux=("term_losses", "lse", "p_y", "argmax", "probs"),
    )
    z = rows(logits).double()
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    singles = [ak.robust_loss(logits, target, term, reduction="none") for _, term in terms]
    weighted = sum(w * single for (w, _), single in zip(terms, aux.term_losses, strict=True))
    close = {"rtol": tolerance, "atol": tolerance, "check_dtype": False}
    torch.testing.assert_close(aux.term_losses, torch.stack(singles), **close)
    torch.testing.assert_close(loss, weighted, **close)
    torch.testing.assert_close(aux.lse, z.logsumexp(-1), **close)
    p = z.softmax(-1)
    torch.testing.assert_close(aux.p_y, p.gather(-1, target[..., None]).squeeze(-1), **close)
    assert torch.equal(aux.argmax, z.argmax(-1))
    assert aux.probs.dtype == dtype
    rounding = max(tolerance, torch.finfo(dtype).eps)
    torch.testing.assert_close(rows(aux.probs), p, rtol=rounding, atol=rounding, check_dtype=False)


def test_aux_of_ignored_rows(backend, device):
    logits, target = problem((3, 5), device)
    target[1] = -100
    _, aux = ak.robust_loss(logits, target, CASES["ANL-CE"], return_aux=True)
    assert aux.probs is None
    assert aux.p_y[1] == 0
    assert not aux.term_losses[:, 1].any()
    torch.testing.assert_close(aux.lse, logits.logsumexp(1))
    assert torch.equal(aux.argmax, logits.argmax(1))


@pytest.mark.parametrize("wanted", ["lse", ["probs"], ("p_y", "argmax"), []])
def test_aux_holds_what_was_asked_for(wanted, backend, device):
    logits, target = problem((3, 5), device)
    result = ak.robust_loss(logits, target, ak.NCE(), return_aux=wanted)
    if not wanted:
        assert isinstance(result, torch.Tensor)
        return
    aux = vars(result[1])
    names = {wanted} if isinstance(wanted, str) else set(wanted)
    assert {name for name, value in aux.items() if value is not None} == names
    assert not any(value.requires_grad for value in aux.values() if value is not None)


def test_argmax_takes_the_first_of_equals(backend, device):
    logits = torch.tensor([[1.0, 3, 3, 3], [3, 3, 0, 3], [0, 0, 0, 0]], device=device)
    for target in ([2, 3, 1], [1, 0, 0], [0, 2, 3]):
        target = torch.tensor(target, device=device)
        _, aux = ak.robust_loss(logits, target, ak.CE(), return_aux="argmax")
        assert aux.argmax.tolist() == [1, 0, 0]


def test_no_gradient_without_need(backend, device):
    logits, target = problem((3, 5), device)
    assert not ak.robust_loss(logits, target, ak.NCE()).requires_grad
    with torch.no_grad():
        loss = ak.robust_loss(logits.requires_grad_(), target, ak.NCE())
    assert not loss.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dim", [0, 1, -1, -2])
def test_softmax(dim, dtype, backend, device):
    logits = torch.randn(3, 4, 5, device=device).to(dtype).requires_grad_()
    probs = ak.softmax(logits, dim)
    wanted = torch.softmax(logits.detach().double(), dim)
    up = torch.randn_like(logits)
    (grad,) = torch.autograd.grad(probs, logits, up)
    by_logits = wanted * (up - (wanted * up).sum(dim, keepdim=True))
    eps = torch.finfo(dtype).eps
    assert probs.dtype == dtype
    assert error(probs, wanted) <= eps
    assert error(grad, by_logits) <= 2 * eps


def test_softmax_gradcheck(backend, device):
    logits = torch.randn(2, 4, 3, dtype=torch.float64, device=device, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: ak.softmax(z, 1), logits, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda z: ak.softmax(z, 1), logits, fast_mode=True)


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_softmax_of_nothing(dim, backend, device):
    logits = torch.empty(2, 0, 3, device=device)
    assert ak.softmax(logits, dim).shape == (2, 0, 3)
