"""Class probabilities as targets: ``F.cross_entropy``'s for CE, and linear for every term."""

import pytest
import torch
import torch.nn.functional as F

import anl_kernels as ak
from tests.cases import CASES, KINDS, is_detached, over
from tests.helpers import error
from tests.mixed.definitions import by_each_label, gradient

SHAPES = [(5,), (6, 5), (2, 5, 3), (2, 5, 3, 4)]
REDUCTIONS = ("mean", "sum", "none")
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def problem(shape, device, dtype=torch.float64, labels=torch.float64, scale=3.0):
    dim = 1 if len(shape) > 1 else 0
    logits = (scale * torch.randn(shape, dtype=torch.float64, device=device)).to(dtype)
    shares = torch.randn(shape, dtype=torch.float64, device=device).softmax(dim).to(labels)
    return logits, shares


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cross_entropy_is_torchs(shape, reduction, weighted, smoothing, form, backend, device):
    logits, shares = problem(shape, device)
    weight = torch.rand(5, dtype=torch.float64, device=device) + 0.1 if weighted else None
    options = {"weight": weight, "reduction": reduction}
    ours = gradient(lambda z: ak.robust_loss(z, shares, ak.CE(smoothing), **options), logits)
    theirs = gradient(
        lambda z: F.cross_entropy(z, shares, label_smoothing=smoothing, **options), logits
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("labels", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_no_further_from_the_truth_than_torch(
    reduction, dtype, labels, offset, swept, backend, device
):
    logits, shares = problem((7, 40), device, torch.float64, labels)
    logits = (logits + offset).to(dtype)
    truth = gradient(
        lambda z: F.cross_entropy(z, shares.double(), reduction=reduction), logits.double()
    )
    theirs = gradient(lambda z: F.cross_entropy(z, shares.to(dtype), reduction=reduction), logits)
    ours = gradient(lambda z: ak.robust_loss(z, shares, ak.CE(), reduction=reduction), logits)
    assert ours[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert ours[1].dtype == dtype
    eps = torch.finfo(dtype).eps
    single = max(eps if dtype == torch.float64 else 0, torch.finfo(ours[0].dtype).eps)
    assert error(ours[0], truth[0]) <= error(theirs[0], truth[0]) + 4 * single
    assert error(ours[1], truth[1]) <= error(theirs[1], truth[1]) + 2 * eps


@over()
def test_every_term_is_linear_in_the_label(terms, form, device):
    logits, shares = problem((4, 6, 2), device)
    shares = 1.7 * shares  # need not sum to 1
    shares[0, 1] = 0
    weight = None
    if not any(getattr(term, "label_smoothing", 0) for _, term in terms):
        weight = torch.rand(6, dtype=torch.float64, device=device)
    ours = gradient(
        lambda z: ak.robust_loss(z, shares, terms, weight=weight, reduction="none"), logits
    )
    wanted = gradient(lambda z: by_each_label(z, shares, terms, weight), logits)
    torch.testing.assert_close(ours, wanted, rtol=1e-11, atol=1e-11)


@over()
def test_a_sure_label_is_that_label(terms, swept, device):
    logits, _ = problem((6, 7), device)
    target = torch.randint(7, (6,), device=device)
    shares = F.one_hot(target, 7).float()
    ours = gradient(lambda z: ak.robust_loss(z, shares, terms), logits)
    wanted = gradient(lambda z: ak.robust_loss(z, target, terms), logits)
    torch.testing.assert_close(ours, wanted, rtol=1e-11, atol=1e-11)


@over()
def test_gradcheck(terms, swept, device):
    logits, shares = problem((2, 4), device, scale=1.0)
    logits.requires_grad_()

    def loss(z):
        return ak.robust_loss(z, shares, terms, reduction="none")

    if not is_detached(terms):
        assert torch.autograd.gradcheck(loss, logits, fast_mode=True)
        assert torch.autograd.gradgradcheck(loss, logits, fast_mode=True)


@over(KINDS)
def test_the_target_gets_its_gradient(terms, form, backend, device):
    logits, shares = problem((3, 5), device)
    logits.requires_grad_()
    shares.requires_grad_()
    loss = ak.robust_loss(logits, shares, terms, reduction="sum")
    by_logits, by_shares = torch.autograd.grad(loss, (logits, shares))
    wanted = by_each_label(logits, shares, terms).sum()
    torch.testing.assert_close(by_logits, torch.autograd.grad(wanted, logits)[0])
    losses = [
        ak.robust_loss(logits, torch.full((3,), k, device=device), terms, reduction="none")
        for k in range(5)
    ]
    torch.testing.assert_close(by_shares, torch.stack(losses, 1).detach())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@over(("CE", "CE-smoothed", "ANL-CE", "AMSE"))
def test_a_class_that_is_not_there(terms, dtype, form, backend, device):
    logits, shares = problem((4, 5), device, dtype, dtype)
    shares[:, 2] = 0
    absent = logits.clone()
    absent[:, 2] = -torch.inf
    kept = [0, 1, 3, 4]
    ours = gradient(lambda z: ak.robust_loss(z, shares, terms), absent)
    wanted = gradient(lambda z: ak.robust_loss(z, shares[:, kept], terms), absent[:, kept])
    torch.testing.assert_close(ours[0], wanted[0])
    torch.testing.assert_close(ours[1][:, kept], wanted[1])
    assert not ours[1][:, 2].any()


def test_a_share_of_a_class_that_is_not_there(form, backend, device):
    logits, shares = problem((2, 5), device, torch.float32, torch.float32)
    logits[0, 3] = -torch.inf
    loss = ak.robust_loss(logits, shares, ak.CE(), reduction="none")
    assert loss[0] == torch.inf
    assert loss[1].isfinite()


@over(("CE", "ANL-CE"))
def test_nan_shows(terms, form, backend, device):
    logits, shares = problem((3, 5), device, torch.float32, torch.float32)
    logits[1, 2] = torch.nan
    shares[2, 4] = torch.nan
    loss = ak.robust_loss(logits, shares, terms, reduction="none")
    assert loss.isnan().tolist() == [False, True, True]


@over(("CE", "ANL-CE", "ZLoss"))
def test_rows_of_zeros_do_not_count(terms, form, backend, device):
    logits, shares = problem((3, 5), device)
    shares[1] = 0
    loss, grad = gradient(lambda z: ak.robust_loss(z, shares, terms, reduction="none"), logits)
    assert loss[1] == 0
    assert not grad[1].any()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_sample_weight(reduction, form, backend, device):
    logits, shares = problem((2, 5, 3), device)
    sample_weight = torch.rand(2, 3, dtype=torch.float64, device=device, requires_grad=True)
    options = {"sample_weight": sample_weight, "reduction": reduction}
    loss = ak.robust_loss(logits, shares, ak.CE() + ak.GCE(), **options)
    wanted = by_each_label(logits, shares, ak.CE() + ak.GCE()) * sample_weight
    wanted = wanted if reduction == "none" else wanted.sum() / (6 if reduction == "mean" else 1)
    torch.testing.assert_close(loss, wanted)
    (grad,) = torch.autograd.grad(loss.sum(), sample_weight)
    torch.testing.assert_close(grad, torch.autograd.grad(wanted.sum(), sample_weight)[0])


def test_padding(form, kernels, device):
    logits, shares = problem((4, 8), device)
    ours = gradient(lambda z: ak.robust_loss(z, shares, ak.CE(), num_classes=5), logits)
    wanted = gradient(lambda z: ak.robust_loss(z[:, :5], shares[:, :5], ak.CE()), logits)
    torch.testing.assert_close(ours, wanted)


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "expanded"])
def test_layouts(layout, form, kernels, device):
    logits, shares = problem((2, 5, 3, 4), device, torch.float32, torch.float32)
    wanted = gradient(lambda z: ak.robust_loss(z, shares, CASES["SCE"]), logits)
    if layout == "channels_last":
        logits = logits.to(memory_format=torch.channels_last)
    elif layout == "transposed":
        logits = logits.transpose(2, 3).contiguous().transpose(2, 3)
    else:
        shares = shares[:1, :, :1, :1].expand(2, 5, 3, 4)
        wanted = gradient(lambda z: ak.robust_loss(z, shares.clone(), CASES["SCE"]), logits)
    ours = gradient(lambda z: ak.robust_loss(z, shares, CASES["SCE"]), logits)
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-6)


def test_aux(form, backend, device):
    logits, shares = problem((4, 5, 2), device)
    terms = CASES["ANL-CE"] + ak.ZLoss()
    loss, aux = ak.robust_loss(
        logits,
        shares,
        terms,
        reduction="none",
        return_aux=("term_losses", "lse", "p_y", "argmax", "probs"),
    )
    weighted = sum(w * one for (w, _), one in zip(terms, aux.term_losses, strict=True))
    torch.testing.assert_close(loss, weighted)
    torch.testing.assert_close(aux.lse, logits.logsumexp(1))
    torch.testing.assert_close(aux.probs, logits.softmax(1))
    torch.testing.assert_close(aux.p_y, (logits.softmax(1) * shares).sum(1))
    assert torch.equal(aux.argmax, logits.argmax(1))


def test_a_learned_weight(form, backend, device):
    logits, shares = problem((4, 5), device)
    alpha = torch.tensor(0.7, dtype=torch.float64, device=device, requires_grad=True)
    loss = ak.robust_loss(logits, shares, alpha * ak.CE(0.1) + ak.MAE())
    (grad,) = torch.autograd.grad(loss, alpha)
    torch.testing.assert_close(grad, ak.robust_loss(logits, shares, ak.CE(0.1)))


@pytest.mark.parametrize("shape", [(0, 5), (2, 5, 0)], ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_no_rows(reduction, shape, form, backend, device):
    logits, shares = problem(shape, device, torch.float32, torch.float32)
    loss, grad = gradient(
        lambda z: ak.robust_loss(z, shares, ak.CE() + ak.NCE(), reduction=reduction), logits
    )
    assert loss.sum() == 0
    assert grad.shape == shape


def test_inplace(swept, kernels, device):
    logits, shares = problem((4, 50), device, torch.float32, torch.float32)
    wanted = gradient(lambda z: ak.robust_loss(z, shares, ak.CE()), logits)
    leaf = logits.clone().requires_grad_()
    copy = leaf.clone()
    loss = ak.robust_loss(copy, shares, ak.CE(), inplace=True)
    loss.backward(retain_graph=True)
    torch.testing.assert_close((loss.detach(), leaf.grad), wanted)
    with pytest.raises(RuntimeError, match="inplace"):
        loss.backward()


@over(("CE", "ANL-CE"))
def test_a_second_backward(terms, swept, kernels, device):
    logits, shares = problem((4, 6), device, torch.float32, torch.float32)
    logits.requires_grad_()
    loss = ak.robust_loss(logits, shares, terms)
    first, second = (torch.autograd.grad(3 * loss, logits, retain_graph=True) for _ in "12")
    torch.testing.assert_close(first, second)
