"""Log-probabilities of given classes, and losses that are a function of the target's."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import anl_kernels as ak
from anl_kernels.rows.log_probs import LogProbsFunction
from tests.backends import running_on
from tests.helpers import backend_in_use, error, leaf, loss_and_grad, random_rows

# What the arithmetic may lose: that of narrow logits is float32's.
DIGITS = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-6, torch.float16: 1e-6}
over_dtypes = pytest.mark.parametrize("dtype", DIGITS)

SHAPES = {
    "one": ((5, 7), (5,)),
    "one-row": ((7,), ()),
    "one-pixel": ((1, 7, 3, 2), (1, 3, 2)),
    "several": ((5, 7), (5, 4)),
    "several-one": ((5, 7), (5, 1)),
    "several-of-many": ((2, 19), (2, 4)),
    "several-more-than-classes": ((2, 7), (2, 9)),
    "several-row": ((7,), (3,)),
    "several-pixels": ((1, 7, 3, 2), (1, 3, 3, 2)),
    "no-rows": ((0, 7), (0, 4)),
}
over_shapes = pytest.mark.parametrize(("shape", "of_classes"), SHAPES.values(), ids=list(SHAPES))


@pytest.fixture(params=["reference", "cpu"])
def quick(request):
    """As ``backend``, for what does not depend on which kernels run."""
    with running_on(request.param):
        yield request.param


def assert_gradient(ours, exact, digits=None):
    """Only the last rounding is the narrow one."""
    assert error(ours, exact) <= 1.05 * error(exact.to(ours.dtype), exact) + (
        digits or DIGITS[ours.dtype]
    )


def formula(logits, classes, ignore_index=-100):
    """log_softmax and gather, as PyTorch has them."""
    dim = 1 if logits.dim() > 1 else 0
    one = classes.dim() < logits.dim()
    places = classes.unsqueeze(dim) if one else classes
    ignored = places == ignore_index
    found = logits.log_softmax(dim).gather(dim, places.masked_fill(ignored, 0).long())
    found = found.masked_fill(ignored, 0)
    return found.squeeze(dim) if one else found


def problem(shape, of_classes, dtype, device):
    """Logits, classes of which one is ignored, and an upstream gradient."""
    logits = 3 * torch.randn(shape, dtype=torch.float64, device=device)
    classes = torch.randint(7, of_classes, device=device)
    classes.view(-1)[-1:] = -100
    upstream = torch.randn(of_classes, dtype=torch.float64, device=device)
    return logits.to(dtype), classes, upstream


@over_dtypes
@over_shapes
def test_values_and_gradients(shape, of_classes, dtype, backend, device):
    logits, classes, upstream = problem(shape, of_classes, dtype, device)
    ours, exact = leaf(logits), leaf(logits.double())
    log_p, wanted = ak.log_prob(ours, classes), formula(exact, classes)
    assert log_p.shape == wanted.shape
    assert log_p.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert error(log_p.detach(), wanted.detach()) <= DIGITS[dtype]
    log_p.backward(upstream.to(log_p.dtype))
    wanted.backward(upstream)
    assert ours.grad.dtype == dtype
    assert_gradient(ours.grad, exact.grad)


@over_shapes
def test_derivatives(shape, of_classes, quick, device):
    logits, classes, _ = problem(shape, of_classes, torch.float64, device)
    assert torch.autograd.gradcheck(lambda z: ak.log_prob(z, classes), leaf(logits))
    assert torch.autograd.gradgradcheck(lambda z: ak.log_prob(z, classes), leaf(logits))


@pytest.mark.parametrize("classes_last", [False, True])
@pytest.mark.parametrize("label_dtype", [torch.int32, torch.int64])
def test_strides_and_labels(classes_last, label_dtype, quick, device):
    logits = torch.randn(2, 7, 3, 4, device=device)
    if classes_last:
        logits = logits.to(memory_format=torch.channels_last)
    classes = torch.randint(7, (2, 3, 4, 6), device=device).movedim(-1, 1).to(label_dtype)
    ours, wanted = leaf(logits), leaf(logits)
    ak.log_prob(ours, classes).sum().backward()
    formula(wanted, classes).sum().backward()
    torch.testing.assert_close(ours.grad, wanted.grad)


def test_one_class_is_cross_entropy(backend, device):
    logits, target = random_rows(6, 9, torch.float32, device)
    losses = ak.robust_loss(logits, target, ak.CE(), reduction="none")
    assert torch.equal(ak.log_prob(logits, target), -losses)
    assert torch.equal(ak.log_prob(logits, target.unsqueeze(1)).squeeze(1), -losses)


def complement(log_p):
    """-log(1 - p), as negative learning has it."""
    return -torch.log(-torch.expm1(log_p)).sum()


@over_dtypes
def test_classes_of_high_probability_keep_their_digits(dtype, backend, device):
    """1 - p of a sampled class that has nearly all the probability, and its large gradient."""
    logits = torch.tensor([[2.0, 18.0, 1.0, -1.0], [32.0, 18.0, 16.0, 1.0]], dtype=dtype)
    classes = torch.tensor([[0, 1, 1], [3, 2, 0]])
    ours, exact = leaf(logits.to(device)), leaf(logits.double().to(device))
    loss = complement(ak.log_prob(ours, classes.to(device)))
    p = exact.softmax(1)
    others = (p.sum(1, keepdim=True) - p).double()
    others[0, 1] = p[0, [0, 2, 3]].sum()
    others[1, 0] = p[1, 1:].sum()
    wanted = -others.gather(1, classes.to(device)).log().sum()
    loss.backward()
    wanted.backward()
    assert error(loss.detach(), wanted.detach()) <= 2e-6
    assert_gradient(ours.grad, exact.grad, 2e-6)


def test_a_small_gradient_beside_a_large_one(quick, device):
    """At the label the gradient is no difference of what the kernel wrote and the sum."""
    logits = torch.tensor([[1.0, 0.5, 30.0]], device=device, requires_grad=True)
    upstream = torch.tensor([[1e-6, 1.0]], device=device)
    ak.log_prob(logits, torch.tensor([[0, 1]], device=device)).backward(upstream)
    torch.testing.assert_close(logits.grad[0, :2], upstream[0], rtol=1e-5, atol=0)


@pytest.mark.parametrize("num_classes", [7, 50])  # few for the classes asked for, and many
def test_repeated_classes(num_classes, backend, device):
    logits, _ = random_rows(2, num_classes, torch.float32, device)
    classes = torch.tensor([[3, 1, 3, 3, 1], [6, 6, 6, -100, 6]], device=device)
    upstream = torch.randn(2, 5, device=device)
    ours, wanted = leaf(logits), leaf(logits.double())
    ak.log_prob(ours, classes).backward(upstream)
    formula(wanted, classes).backward(upstream.double())
    assert_gradient(ours.grad, wanted.grad)


def test_ignored_entries(backend, device):
    logits = torch.randn(4, 5, device=device)
    logits[1] = torch.nan  # a row of which nothing is asked
    classes = torch.tensor([[1, 2, -7], [-7, -7, -7], [-7, 3, 3], [0, 4, 1]], device=device)
    ours = leaf(logits)
    log_p = ak.log_prob(ours, classes, ignore_index=-7)
    assert not log_p[classes == -7].any()
    upstream = torch.randn(4, 3, device=device)
    log_p.backward(upstream)
    assert not ours.grad[1].any()
    wanted = leaf(logits.nan_to_num(0))
    formula(wanted, classes, -7).backward(upstream)
    torch.testing.assert_close(ours.grad, wanted.grad)
    (again,) = torch.autograd.grad(
        ak.log_prob(ours, classes, ignore_index=-7), ours, upstream, create_graph=True
    )
    torch.testing.assert_close(again.detach(), wanted.grad)


def test_a_class_may_be_what_is_ignored(quick, device):
    logits, _ = random_rows(3, 5, torch.float32, device)
    classes = torch.tensor([[2, 1], [2, 2], [0, 2]], device=device)
    ours, wanted = leaf(logits), leaf(logits)
    ak.log_prob(ours, classes, ignore_index=2).sum().backward()
    formula(wanted, classes, 2).sum().backward()
    torch.testing.assert_close(ours.grad, wanted.grad)
    assert not ours.grad[1].any()


def test_classes_that_are_not_there(quick, device):
    logits = torch.tensor([[1.0, -torch.inf, 2.0], [0.0, -torch.inf, 0.0]], device=device)
    ours = leaf(logits)
    log_p = ak.log_prob(ours, torch.tensor([[1, 0, 2], [1, 1, -100]], device=device))
    assert log_p[0, 0] == -torch.inf
    assert (log_p[1] == torch.tensor([-torch.inf, -torch.inf, 0], device=device)).all()
    wanted = torch.tensor([1.0, 2.0], device=device).log_softmax(0)
    torch.testing.assert_close(log_p[0, 1:].detach(), wanted)
    ours.grad = None
    ak.log_prob(ours, torch.tensor([[0, 2], [0, 2]], device=device)).sum().backward()
    assert not ours.grad[:, 1].any()
    assert ours.grad.isfinite().all()


def test_padding_of_the_vocabulary(quick, device):
    logits, _ = random_rows(4, 6, torch.float32, device)
    for classes in (torch.randint(4, (4,)), torch.randint(4, (4, 3))):
        ours, wanted = leaf(logits), leaf(logits[:, :4])
        log_p = ak.log_prob(ours, classes.to(device), num_classes=4)
        torch.testing.assert_close(log_p, formula(wanted, classes.to(device)))
        log_p.sum().backward()
        formula(wanted, classes.to(device)).sum().backward()
        torch.testing.assert_close(ours.grad[:, :4], wanted.grad)
        assert not ours.grad[:, 4:].any()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's, of its own modules
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_compiles_without_breaks(device):
    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(z, classes):
        return ak.log_prob(z * 1.0, classes).exp().sum()

    for rows in (4, 6):
        logits, target = random_rows(rows, 7, torch.float32, device)
        classes = torch.stack([target, target.flip(0)], 1)
        ours, wanted = leaf(logits), leaf(logits)
        compiled(ours, classes).backward()
        ak.log_prob(wanted, classes).exp().sum().backward()
        torch.testing.assert_close(ours.grad, wanted.grad)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_transforms(device):
    logits, _ = random_rows(4, 7, torch.float64, device)
    classes = torch.randint(7, (4, 3), device=device)

    def total(z, classes):
        return ak.log_prob(z, classes).square().sum()

    wanted = leaf(logits)
    formula(wanted, classes).square().sum().backward()
    torch.testing.assert_close(torch.func.grad(total)(logits, classes), wanted.grad)
    each = torch.func.vmap(torch.func.grad(total))(logits, classes)
    torch.testing.assert_close(each, wanted.grad)
    hessian = torch.func.jacrev(torch.func.jacrev(lambda z: total(z, classes[0])))(logits[0])
    by_formula = torch.func.hessian(lambda z: formula(z, classes[0]).square().sum())(logits[0])
    torch.testing.assert_close(hessian, by_formula)


class Largest(TorchDispatchMode):
    """Counts the results of a size at least that of the logits that are not written in place."""

    def __init__(self, size):
        super().__init__()
        self.size = size
        self.made = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        known = {a.data_ptr() for a in args if isinstance(a, torch.Tensor)}
        for result in results if isinstance(results, tuple | list) else [results]:
            if isinstance(result, torch.Tensor) and result.untyped_storage().nbytes() >= self.size:
                self.made |= {result.data_ptr()} - known
        return results


@pytest.mark.parametrize("num_classes", [None, 3])
def test_nothing_of_the_logits_size_but_the_gradient(num_classes, kernels, device):
    logits = torch.randn(8, 500, device=device, requires_grad=True)
    classes = torch.randint(500, (8,) if num_classes is None else (8, num_classes), device=device)
    size = logits.numel() * logits.element_size()
    with Largest(size) as forward:
        log_p = ak.log_prob(logits, classes)
    with Largest(size) as backward:
        (grad,) = torch.autograd.grad(log_p.sum(), logits)
    assert forward.made <= {logits.data_ptr()}
    assert backward.made <= {logits.data_ptr(), grad.data_ptr()}


@pytest.mark.parametrize(
    ("classes", "kind", "message"),
    [
        (torch.zeros(4, 2, 1, dtype=torch.int64), ValueError, r"classes must have shape \(4,\)"),
        (torch.zeros(4, 0, dtype=torch.int64), ValueError, r"got \(4, 0\)"),
        (torch.zeros(3, 2, dtype=torch.int64), ValueError, r"classes must have shape \(4, 2\)"),
        (torch.zeros(4), TypeError, "classes must be int64 or int32"),
        ([1, 2, 3, 0], TypeError, "classes must be a tensor, got list"),
        (torch.tensor([[0, 1]] * 3 + [[9, 0]]), IndexError, r"classes\[3, 0\] is 9, outside"),
        (torch.tensor([0, -1, 2, 3]), IndexError, r"classes\[1\] is -1, outside \[0, 5\)"),
    ],
)
def test_refused_classes(classes, kind, message):
    with pytest.raises(kind, match=message):
        ak.log_prob(torch.randn(4, 5), classes)


def test_a_label_out_of_range_shows_where_nothing_checks(kernels, device):
    """As on a GPU: the row is NaN, and nothing is read or written out of bounds."""
    logits = torch.randn(3, 5, device=device, requires_grad=True)
    classes = torch.tensor([[0, 1, -100], [7, 2, -100], [1, 1, 1]], device=device)
    log_p = LogProbsFunction.apply(logits, classes, -100, backend_in_use())[0]
    assert log_p[1, :2].isnan().all()
    assert log_p[[0, 2]].isfinite().all()
    (grad,) = torch.autograd.grad(log_p.sum(), logits, retain_graph=True)
    (again,) = torch.autograd.grad(log_p.sum(), logits, create_graph=True)
    for g in (grad, again):
        assert g[1].isnan().all()
        assert g[[0, 2]].isfinite().all()


# Losses of log p_y alone.


class LearnedGCE(nn.Module):
    """GCE whose order is learned."""

    def __init__(self, q, dtype=torch.float32):
        super().__init__()
        raw = math.log(math.expm1(q))  # softplus of it is q
        self.raw = nn.Parameter(torch.tensor(raw, dtype=dtype))

    def forward(self, log_p):
        q = F.softplus(self.raw)
        return -torch.expm1(q * log_p) / q


HEADS = {
    "MAE": (lambda log_p: -torch.expm1(log_p), ak.MAE()),
    "GCE": (lambda log_p: -torch.expm1(0.7 * log_p) / 0.7, ak.GCE(0.7)),
    "CE": (torch.neg, ak.CE()),
    "AEL": (lambda log_p: torch.exp(-log_p.exp() / 3), ak.AEL(3)),
}
OPTIONS = {
    "mean": {},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "weight": {"weight": torch.arange(1.0, 8.0)},
    "ignored": {"ignore_index": 2},
    "weight-ignored-none": {
        "weight": torch.arange(1.0, 8.0),
        "ignore_index": 2,
        "reduction": "none",
    },
}


def head_loss_and_grad(criterion, logits, target, **call):
    ours = leaf(logits)
    loss = criterion(ours, target, **call)
    loss.sum().backward()
    return loss.detach(), ours.grad


@over_dtypes
@pytest.mark.parametrize(("head", "terms"), HEADS.values(), ids=list(HEADS))
def test_heads_are_the_fused_losses(head, terms, dtype, quick, device):
    logits, target = random_rows(20, 7, dtype, device)
    target[3] = -100
    loss, grad = head_loss_and_grad(ak.LogProbLoss(head), logits, target)
    wanted, wanted_grad = loss_and_grad(logits, target, terms)
    assert error(loss, wanted) <= DIGITS[dtype]
    assert error(grad, wanted_grad) <= DIGITS[dtype]
    assert not grad[3].any()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
@pytest.mark.parametrize("shape", [(9, 7), (2, 7, 3, 2), (7,)], ids=str)
def test_options_of_heads_are_those_of_losses(shape, options, quick, device):
    logits = torch.randn(shape, device=device)
    target = torch.randint(7, shape[:1] + shape[2:] if len(shape) > 1 else (), device=device)
    moved = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    criterion = ak.LogProbLoss(HEADS["GCE"][0], **moved).to(device)
    for sample_weight in (None, torch.rand(target.shape, device=device)):
        ours = head_loss_and_grad(criterion, logits, target, sample_weight=sample_weight)
        wanted = loss_and_grad(logits, target, ak.GCE(), sample_weight=sample_weight, **moved)
        torch.testing.assert_close(ours, wanted)


def test_what_a_head_learns(quick, device):
    logits, target = random_rows(5, 7, torch.float64, device)
    target[1] = -100
    weight = torch.rand(5, dtype=torch.float64, device=device, requires_grad=True)
    criterion = ak.LogProbLoss(LearnedGCE(0.6, torch.float64)).to(device)
    loss, grad = head_loss_and_grad(criterion, logits, target)
    wanted, wanted_grad = loss_and_grad(logits, target, ak.GCE(0.6))
    torch.testing.assert_close((loss, grad), (wanted, wanted_grad))
    assert [name for name, _ in criterion.named_parameters()] == ["head.raw"]

    def function(z, raw, sample_weight):
        replaced = {"head.raw": raw}
        return torch.func.functional_call(criterion, replaced, (z, target, sample_weight))

    inputs = (leaf(logits), leaf(criterion.head.raw), weight)
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_an_order_is_learned(device):
    """The mean of the loss over a fixed batch falls with steps of the order alone."""
    logits, target = random_rows(50, 7, torch.float32, device)
    criterion = ak.LogProbLoss(LearnedGCE(0.5)).to(device)
    optimizer = torch.optim.SGD(criterion.parameters(), lr=1.0)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = criterion(logits, target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sorted(losses, reverse=True) == losses
    assert losses[-1] < losses[0]


def test_a_pole_at_certainty_does_not_reach_ignored_rows(quick, device):
    head = nn.Linear(1, 1).to(device)

    def square_root(log_p):  # infinite slope at p = 1
        return head.weight.squeeze() * (-torch.expm1(log_p)).sqrt()

    logits, target = random_rows(3, 7, torch.float32, device)
    target[0] = -100
    logits[0] = torch.inf
    loss, grad = head_loss_and_grad(ak.LogProbLoss(square_root), logits, target)
    assert loss.isfinite()
    assert head.weight.grad.isfinite().all()
    assert not grad[0].any()
    assert grad[1:].isfinite().all()


def test_no_row_counts(quick, device):
    logits, target = random_rows(3, 7, torch.float32, device)
    target.fill_(-100)
    loss, grad = head_loss_and_grad(ak.LogProbLoss(torch.neg), logits, target)
    assert loss == 0
    assert not grad.any()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's, of its own modules
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_head_compiles(device):
    criterion = ak.LogProbLoss(LearnedGCE(0.6)).to(device)
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
    logits, target = random_rows(5, 7, torch.float32, device)
    ours, grad = head_loss_and_grad(compiled, logits, target)
    by_order = criterion.head.raw.grad.clone()
    criterion.zero_grad()
    torch.testing.assert_close((ours, grad), head_loss_and_grad(criterion, logits, target))
    torch.testing.assert_close(by_order, criterion.head.raw.grad)


def test_what_heads_may_not_be():
    logits, target = torch.randn(3, 7), torch.tensor([0, 1, 2])
    with pytest.raises(TypeError, match=r"head must map log-probabilities to losses, got 0\.7"):
        ak.LogProbLoss(0.7)
    with pytest.raises(ValueError, match=r"of shape \(3,\), got \(\); leave sums"):
        ak.LogProbLoss(torch.mean)(logits, target)
    with pytest.raises(ValueError, match="got float"):
        ak.LogProbLoss(lambda log_p: 1.0)(logits, target)
    with pytest.raises(ValueError, match="reduction must be"):
        ak.LogProbLoss(torch.neg, reduction="batchmean")
    with pytest.raises(TypeError, match="ignore_index must be an int"):
        ak.LogProbLoss(torch.neg, ignore_index=None)
    with pytest.raises(ValueError, match=r"weight must have shape \(7,\)"):
        ak.LogProbLoss(torch.neg, weight=torch.ones(3))(logits, target)
    with pytest.raises(ValueError, match="sample_weight must have the target's shape"):
        ak.LogProbLoss(torch.neg)(logits, target, torch.ones(2))


def test_repr_and_state():
    criterion = ak.LogProbLoss(LearnedGCE(0.7), weight=torch.ones(7), ignore_index=255)
    assert "ignore_index=255, reduction='mean'" in repr(criterion)
    assert set(criterion.state_dict()) == {"head.raw", "weight"}
    assert "head=<built-in method neg" in repr(ak.LogProbLoss(torch.neg))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_dtype_of_a_head_is_not_the_losses(reduction, device):
    logits, target = torch.randn(2000, 5, device=device), torch.arange(2000, device=device) % 5
    half = ak.LogProbLoss(lambda log_p: -100 * log_p.half(), reduction=reduction)(logits, target)
    full = ak.LogProbLoss(lambda log_p: -100 * log_p, reduction=reduction)(logits, target)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, rtol=1e-3, atol=0)


def test_gradients_in_a_batch(backend, device):
    """As ``autograd.grad(is_grads_batched=True)`` asks for them."""
    logits = torch.randn(3, 5, dtype=torch.float64, device=device, requires_grad=True)
    classes = torch.tensor([[0, 1], [1, 1], [3, 4]], device=device)
    jacobian = torch.autograd.functional.jacobian
    by_one = jacobian(lambda z: ak.log_prob(z, classes), logits)
    made = jacobian(lambda z: ak.log_prob(z, classes), logits, vectorize=True)
    torch.testing.assert_close(made, by_one)
