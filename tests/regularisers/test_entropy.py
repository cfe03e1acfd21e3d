"""The entropy regulariser against its definition in float64 and the official ANL-CE-ER."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call, grad, jacrev, vmap
from torch.utils.checkpoint import checkpoint

import anl_kernels as ak
from tests.helpers import backend_in_use, error, leaf
from tests.test_layouts import ALL, make
from tests.test_vectors import CASES as VECTOR_CASES
from tests.test_vectors import vector

MIN_PROB = 1e-7
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# Some thirty roundings of float32, the accumulator of every storage dtype.
EPSILON = {torch.float64: 1e-13} | dict.fromkeys(DTYPES[1:], 2e-6)
ANL = 5.0 * ak.NCE() + 5.0 * ak.NNCE()


def by_the_paper(logits, counted=None, min_prob=MIN_PROB):
    """The regulariser as the official code writes it, in the logits' dtype."""
    dim = 1 if logits.dim() > 1 else 0
    p = logits.softmax(dim).clamp(min_prob, 1 - min_prob).movedim(dim, -1)
    rows = p.reshape(-1, p.shape[-1]) if counted is None else p[counted]
    q = rows.mean(0)
    q = (q / q.sum()).clamp(min=min_prob)
    return math.log(len(q)) + (q * q.log()).sum()


def value_and_grad(function, logits, *args, **options):
    logits = leaf(logits)
    value = function(logits, *args, **options)
    (gradient,) = torch.autograd.grad(value, logits)
    return value.detach(), gradient


def assert_no_worse_than_pytorch(logits, counted=None):
    """Value and gradient have the error of PyTorch at that dtype, at most."""
    truth = value_and_grad(by_the_paper, logits.double(), counted)
    eager = value_and_grad(by_the_paper, logits, counted)
    ours = value_and_grad(ak.entropy_regulariser, logits, counted=counted)
    assert ours[0].dtype == (torch.float64 if logits.dtype == torch.float64 else torch.float32)
    assert ours[1].dtype == logits.dtype
    for actual, by_pytorch, wanted in zip(ours, eager, truth, strict=True):
        allowed = error(by_pytorch, wanted)
        allowed = allowed if math.isfinite(allowed) else math.inf
        assert error(actual, wanted) <= allowed + EPSILON[logits.dtype]
    return ours


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(7, 10), (33, 200), (2, 21, 40), (2, 250, 3, 2)], ids=str)
def test_no_worse_than_pytorch(shape, dtype, backend, device):
    logits = (4 * torch.randn(shape, dtype=torch.float64, device=device)).to(dtype)
    counted = torch.rand(shape[:1] + shape[2:], device=device) > 0.3
    counted.view(-1)[0] = True
    assert_no_worse_than_pytorch(logits, counted)


def test_many_classes_and_few_rows(backend, device):
    assert_no_worse_than_pytorch(4 * torch.randn(2, 9000, device=device))


@pytest.mark.parametrize("layout", ALL)
def test_any_strides(layout, backend, device, poisoned):
    logits = make(layout, device, torch.float32)
    before = logits.clone()
    ours = value_and_grad(ak.entropy_regulariser, logits)
    assert torch.equal(logits, before)
    wanted = value_and_grad(by_the_paper, logits.double())
    torch.testing.assert_close(ours, wanted, rtol=2e-6, atol=2e-7, check_dtype=False)


def test_near_uniform_predictions_keep_their_digits(backend, device):
    """log K is some 1e8 times the value here, and would take its digits away in float32."""
    logits = (1e-4 * torch.randn(16, 300, dtype=torch.float64, device=device)).float()
    logits[:, 0] += 3e-3
    (truth, by_logits), (ours, gradient) = (
        value_and_grad(by_the_paper, logits.double()),
        value_and_grad(ak.entropy_regulariser, logits),
    )
    assert truth < 1e-7
    assert error(ours, truth) <= 1e-2
    assert error(gradient, by_logits) <= 1e-2


def test_even_predictions_give_0_and_one_class_gives_log_k(backend, device):
    even = torch.eye(5, device=device) * 50
    one = torch.zeros(4, 5, device=device)
    one[:, 2] = 50
    assert ak.entropy_regulariser(even).item() == pytest.approx(0, abs=1e-6)
    assert ak.entropy_regulariser(one).item() == pytest.approx(math.log(5), abs=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
def test_rows_that_do_not_count_may_hold_anything(poison, dtype, backend, device):
    logits = torch.randn(4, 6, device=device).to(dtype)
    counted = torch.tensor([True, False, True, True], device=device)
    wanted = value_and_grad(ak.entropy_regulariser, logits[counted])
    logits[1] = poison
    value, gradient = value_and_grad(ak.entropy_regulariser, logits, counted=counted)
    torch.testing.assert_close(value, wanted[0])
    torch.testing.assert_close(gradient[counted], wanted[1])
    assert not gradient[1].any()


@pytest.mark.parametrize("shape", [(3, 5), (0, 5), (2, 5, 0), (2, 300, 3)], ids=str)
def test_no_row_counts(shape, backend, device):
    logits = torch.randn(shape, device=device)
    counted = torch.zeros(shape[:1] + shape[2:], dtype=torch.bool, device=device)
    value, gradient = value_and_grad(ak.entropy_regulariser, logits, counted=counted)
    assert value == 0
    assert torch.equal(gradient, torch.zeros_like(logits))


@pytest.mark.parametrize("shape", [(6,), (1, 6), (1, 300), (4, 1), (1, 1), (1,)], ids=str)
def test_one_row_and_one_class(shape, backend, device):
    value, gradient = assert_no_worse_than_pytorch(torch.randn(shape, device=device))
    if shape[-1] == 1:
        assert value == 0
        assert not gradient.any()


@pytest.mark.parametrize("num_classes", [6, 250])
def test_a_class_that_is_not_there_has_probability_0(num_classes, backend, device):
    logits = torch.randn(4, num_classes, device=device)
    logits[1, 2] = -torch.inf
    logits[:, 4] = -torch.inf
    _, gradient = assert_no_worse_than_pytorch(logits)
    assert not gradient[:, 4].any()
    assert gradient[1, 2] == 0


@pytest.mark.parametrize("num_classes", [6, 250])
def test_a_nan_is_not_hidden(num_classes, backend, device):
    logits = torch.randn(4, num_classes, device=device)
    logits[1, 2] = torch.nan
    assert ak.entropy_regulariser(logits).isnan()


def test_logits_of_any_size(backend, device):
    """lse is kept in two numbers, of which a large maximum takes no digits."""
    logits = torch.randn(5, 30, dtype=torch.float64, device=device)
    for offset in (-1e4, 3e4):
        shifted = (logits.float() + offset).double()
        truth = value_and_grad(by_the_paper, shifted)
        ours = value_and_grad(ak.entropy_regulariser, shifted.float())
        for actual, wanted in zip(ours, truth, strict=True):
            assert error(actual, wanted) <= 2e-6


def test_gradcheck(backend, device):
    counted = torch.tensor([[True, True, False], [True, False, True]], device=device)
    logits = torch.randn(2, 4, 3, dtype=torch.float64, device=device, requires_grad=True)

    def regulariser(z):
        return ak.entropy_regulariser(z, counted=counted, min_prob=1e-3)

    assert torch.autograd.gradcheck(regulariser, logits, fast_mode=True)
    assert torch.autograd.gradgradcheck(regulariser, logits, fast_mode=True)


def test_a_clamped_mean_has_no_slope(backend, device):
    """q is clamped too: here the last class's, which all rows but one have clamped."""
    logits = torch.zeros(3, 4, dtype=torch.float64, device=device)
    logits[:, 3] = -30
    logits[0, 3] = math.log(1.001e-3 * 3)
    counted = torch.ones(3, dtype=torch.bool, device=device)
    ours = value_and_grad(ak.entropy_regulariser, logits, counted=counted, min_prob=1e-3)
    wanted = value_and_grad(by_the_paper, logits, counted, 1e-3)
    for actual, expected in zip(ours, wanted, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-15)


# ---- the module --------------------------------------------------------------------------------


def regularised(**options):
    return ak.EntropyRegularisedLoss(ak.RobustLoss(ANL, **options), weight=2.0)


def unfused(logits, target, **options):
    counted = target != options.get("ignore_index", -100)
    loss = ak.robust_loss(logits, target, ANL, **options)
    return loss + 2.0 * by_the_paper(logits, counted)


@pytest.fixture
def problem(device):
    logits = 3 * torch.randn(6, 9, dtype=torch.float64, device=device)
    target = torch.tensor([0, 8, -100, 3, 3, 5], device=device)
    return logits, target


@pytest.mark.parametrize("case", VECTOR_CASES)
def test_official_values(case, backend, device):
    logits, target = vector(case, "logits").to(device), vector(case, "target").to(device)
    terms = 5.0 * ak.NCE() + 5.0 * ak.NNCE(prob_max=1 - 1e-7)
    criterion = ak.EntropyRegularisedLoss(ak.RobustLoss(terms), weight=2.0)
    value, gradient = value_and_grad(criterion, logits, target)
    # Ends at the float32 constant of their NNCE.
    assert error(value, vector(case, "anl_ce_er_5_5_2", "loss").to(device)) <= 1e-6
    assert error(gradient, vector(case, "anl_ce_er_5_5_2", "grad").to(device)) <= 1e-6


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(6, 9), (4, 300), (2, 9, 3, 4)], ids=str)
def test_module(shape, dtype, reduction, backend, device):
    logits = (3 * torch.randn(shape, dtype=torch.float64, device=device)).to(dtype)
    target = torch.randint(shape[1], shape[:1] + shape[2:], device=device)
    target.view(-1)[1] = 255
    options = {"reduction": reduction, "ignore_index": 255}
    ours = value_and_grad(regularised(**options), logits, target)
    wanted = value_and_grad(unfused, logits.double(), target, **options)
    for actual, expected in zip(ours, wanted, strict=True):
        # Two roundings of the gradient, of the loss's and of the sum.
        assert error(actual, expected) <= 2 * torch.finfo(dtype).eps + EPSILON[dtype]


def test_module_with_aux_and_weights_of_rows(problem, backend):
    logits, target = problem
    criterion = regularised(return_aux=["lse"])
    sample_weight = torch.rand(6, dtype=torch.float64, device=logits.device, requires_grad=True)
    logits = leaf(logits)
    loss, aux = criterion(logits, target, sample_weight)
    torch.testing.assert_close(aux.lse, logits.logsumexp(1).detach())
    wanted = unfused(logits, target, sample_weight=sample_weight)
    ours = torch.autograd.grad(loss, (logits, sample_weight))
    theirs = torch.autograd.grad(wanted, (logits, sample_weight))
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(ours, theirs)


def test_a_weight_that_is_learned(problem, backend):
    logits, target = problem
    alpha = torch.nn.Parameter(torch.tensor(3.0, device=logits.device))
    criterion = ak.EntropyRegularisedLoss(ak.RobustLoss(alpha * ak.NCE()), weight=0.5)
    assert list(criterion.parameters()) == [alpha]
    criterion(leaf(logits), target).backward()
    torch.testing.assert_close(alpha.grad.double(), ak.nce(logits, target))


def test_module_ignores_all_rows(backend, device):
    logits = torch.randn(3, 5, device=device)
    target = torch.full((3,), -100, device=device)
    value, gradient = value_and_grad(regularised(), logits, target)
    assert value == 0
    assert torch.equal(gradient, torch.zeros_like(logits))


def test_module_without_gradients(problem, backend):
    logits, target = problem
    with torch.no_grad():
        value = regularised()(logits.clone().requires_grad_(), target)
    assert not value.requires_grad
    torch.testing.assert_close(value, unfused(logits, target))


def test_gradients_of_the_module_twice(problem, backend):
    logits, target = problem
    logits, criterion = leaf(logits), regularised()
    assert torch.autograd.gradcheck(lambda z: criterion(z, target), logits, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda z: criterion(z, target), logits, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_second_backward(dtype, problem, backend):
    logits, target = problem
    logits = leaf(logits.to(dtype))
    loss = regularised()(logits, target)
    (first,) = torch.autograd.grad(loss, logits, torch.tensor(0.5, dtype=dtype), retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(second, 2 * kept)
    assert torch.equal(first, kept)


def test_gradients_that_others_hold_are_not_written_to(problem, device, kernels):
    """Where the gradient of the logits is not the loss's own to give away, it is copied."""
    logits, target = problem
    logits = logits.float()
    _, wanted = value_and_grad(unfused, logits, target)

    class Summed(ak.RobustLoss):
        def forward(self, z, y, sample_weight=None):
            return super().forward(z, y, sample_weight) + z.sum()  # its gradient is expanded

    seen = []
    hooked = ak.RobustLoss(ANL)
    hooked.register_full_backward_hook(lambda *args: seen.append((args[1][0], args[1][0].clone())))
    _, gradient = value_and_grad(ak.EntropyRegularisedLoss(hooked, 2.0), logits, target)
    torch.testing.assert_close(gradient, wanted)
    assert torch.equal(*seen[0])
    _, gradient = value_and_grad(ak.EntropyRegularisedLoss(Summed(ANL), 2.0), logits, target)
    torch.testing.assert_close(gradient, wanted + 1)


class Given(torch.autograd.Function):
    """A sum whose gradient is memory of the user's."""

    @staticmethod
    def forward(ctx, logits, given):
        ctx.given = given
        return logits.sum()

    @staticmethod
    def backward(ctx, grad):
        return ctx.given, None


def test_hooks_may_hand_over_what_is_not_the_losses(problem, device, kernels):
    """A forward hook replaces the loss, or reads the gradient: it is copied then."""
    logits, target = problem
    logits = logits.float()
    given = torch.ones_like(logits)
    replaced = ak.RobustLoss(ANL)
    replaced.register_forward_hook(lambda module, args, loss: Given.apply(args[0], given))
    _, gradient = value_and_grad(ak.EntropyRegularisedLoss(replaced, 2.0), logits, target)
    assert torch.equal(given, torch.ones_like(logits))
    assert not torch.equal(gradient, given)

    seen = []
    watch = lambda grad: seen.append((grad, grad.clone()))  # noqa: E731
    watched = ak.RobustLoss(ANL)
    watched.register_forward_pre_hook(lambda module, args: args[0].register_hook(watch) and None)
    value_and_grad(ak.EntropyRegularisedLoss(watched, 2.0), logits, target)
    anywhere = torch.nn.modules.module.register_module_full_backward_hook(
        lambda module, made, upstream: watch(made[0]) if type(module) is ak.RobustLoss else None
    )
    try:
        value_and_grad(ak.EntropyRegularisedLoss(ak.RobustLoss(ANL), 2.0), logits, target)
    finally:
        anywhere.remove()
    assert len(seen) == 2
    assert all(torch.equal(*pair) for pair in seen)


def test_gradient_is_added_in_place(problem, kernels, monkeypatch):
    """The one gradient that there is, is the loss's."""
    from anl_kernels.regularisers import entropy_operators

    logits, target = problem
    written = []
    monkeypatch.setattr(
        entropy_operators,
        "_column_grad",
        lambda grad, *args, accumulate: written.append((grad.data_ptr(), accumulate)),
    )
    for dtype in (torch.float32, torch.float16):
        _, gradient = value_and_grad(regularised(), logits.to(dtype), target)
        assert written.pop() == (gradient.data_ptr(), True)


def test_vmap_and_grad(problem, backend):
    logits, target = problem
    counted = target != -100
    _, wanted = value_and_grad(by_the_paper, logits, counted)
    torch.testing.assert_close(
        grad(lambda z: ak.entropy_regulariser(z, counted=counted))(logits), wanted
    )
    batches = torch.stack([logits, 2 * logits])
    values = vmap(ak.entropy_regulariser)(batches)
    torch.testing.assert_close(values, torch.stack([by_the_paper(z) for z in batches]))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_module_in_transforms(problem, backend):
    logits, target = problem
    criterion = regularised()
    _, wanted = value_and_grad(unfused, logits, target)
    torch.testing.assert_close(grad(lambda z: criterion(z, target))(logits), wanted)
    torch.testing.assert_close(
        functional_call(criterion, {}, (logits, target)), unfused(logits, target)
    )
    ours = jacrev(jacrev(lambda z: criterion(z, target)))(logits)
    with ak.use_backend("reference"):
        theirs = torch.autograd.functional.hessian(lambda z: unfused(z, target), logits)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compile(problem, backend):
    logits, target = problem
    logits, criterion = logits.float(), regularised()
    torch.compiler.reset()
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (6, 4):
        part = logits[:rows], target[:rows]
        torch.testing.assert_close(
            value_and_grad(compiled, *part), value_and_grad(criterion, *part)
        )
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compile_without_gradients(problem):
    logits, target = problem
    torch.compiler.reset()
    compiled = torch.compile(ak.entropy_regulariser, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        compiled(logits, counted=target != -100), by_the_paper(logits, target != -100)
    )
    torch.compiler.reset()


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing(use_reentrant, problem, backend):
    logits, target = problem
    criterion, leaf_logits = regularised(), leaf(logits)
    loss = checkpoint(lambda z: criterion(2 * z, target), leaf_logits, use_reentrant=use_reentrant)
    loss.backward()
    _, wanted = value_and_grad(lambda z: unfused(2 * z, target), logits)
    torch.testing.assert_close(leaf_logits.grad, wanted)


def test_autocast(problem, backend, device):
    logits, target = problem
    weight = torch.randn(9, 9, device=device, requires_grad=True)
    criterion = regularised()

    def step():
        with torch.autocast(device.type, torch.bfloat16):
            made = F.linear(logits.float(), weight)
            loss = criterion(made, target)
        return made, loss

    made, loss = step()
    assert made.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    (ours,) = torch.autograd.grad(loss, weight)
    _, by_logits = value_and_grad(unfused, made.double(), target)
    assert error(ours, by_logits.t() @ logits) <= 2e-2


ERRORS = {
    "dtype": (lambda z, y: ak.entropy_regulariser(y), TypeError, ["logits", "int64"]),
    "0d": (lambda z, y: ak.entropy_regulariser(z.sum()), ValueError, ["logits", "()"]),
    "no classes": (lambda z, y: ak.entropy_regulariser(z[:, :0]), ValueError, ["(6, 0)"]),
    "counted": (
        lambda z, y: ak.entropy_regulariser(z, counted=y),
        TypeError,
        ["counted", "int64", ".bool()"],
    ),
    "counted-list": (
        lambda z, y: ak.entropy_regulariser(z, counted=[True]),
        TypeError,
        ["counted", "list"],
    ),
    "counted-shape": (
        lambda z, y: ak.entropy_regulariser(z, counted=(y > 0)[:3]),
        ValueError,
        ["counted", "(6,)", "(3,)"],
    ),
    "min_prob": (
        lambda z, y: ak.entropy_regulariser(z, min_prob=0.2),
        ValueError,
        ["min_prob", "0.111", "0.2"],
    ),
    "min_prob-0": (lambda z, y: ak.entropy_regulariser(z, min_prob=0.0), ValueError, ["min_prob"]),
    "group": (
        lambda z, y: ak.entropy_regulariser(z, process_group="data"),
        TypeError,
        ["process_group", "'data'"],
    ),
    "weight": (
        lambda z, y: ak.EntropyRegularisedLoss(ak.RobustLoss(ANL), math.inf),
        ValueError,
        ["weight", "inf"],
    ),
    "criterion": (
        lambda z, y: ak.EntropyRegularisedLoss(torch.nn.CrossEntropyLoss(), 1.0),
        TypeError,
        ["criterion", "CrossEntropyLoss", "ak.entropy_regulariser"],
    ),
    "none": (lambda z, y: regularised(reduction="none"), ValueError, ["criterion", "'none'"]),
    "inplace": (lambda z, y: regularised(inplace=True), ValueError, ["criterion", "inplace=False"]),
    "num_classes": (lambda z, y: regularised(num_classes=3), ValueError, ["num_classes=3"]),
    "target": (lambda z, y: regularised()(z, y[:3]), ValueError, ["target", "(6,)", "(3,)"]),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_say_what_to_do(name, device):
    call, kind, words = ERRORS[name]
    logits, target = torch.randn(6, 9, device=device), torch.randint(9, (6,), device=device)
    with pytest.raises(kind) as raised:
        call(logits, target)
    for word in words:
        assert word in str(raised.value)


def test_representation():
    assert repr(regularised()).startswith("EntropyRegularisedLoss(\n  weight=2, min_prob=1e-07")


# ---- the operators -----------------------------------------------------------------------------

OPS = torch.ops.anl_kernels


def opcheck(operator, args):
    result = torch.library.opcheck(operator.default, args)
    assert set(result.values()) == {"SUCCESS"}, result


@pytest.mark.parametrize("shape", [(3, 5), (5,), (2, 5, 3), (0, 5)], ids=str)
def test_operators(shape, kernels, device):
    logits = torch.randn(shape, device=device, requires_grad=True)
    with_mask = len(shape) != 2
    rows = shape[:1] + shape[2:] if len(shape) > 1 else ()
    counted = torch.ones(rows, dtype=torch.bool, device=device) if with_mask else None
    spec = (MIN_PROB, backend_in_use(), "")
    opcheck(OPS.entropy, (logits, counted, *spec))
    _, slopes, lse_parts = OPS.entropy(logits.detach(), counted, *spec)
    saved = torch.ones((), device=device), logits.detach(), counted, slopes, lse_parts
    opcheck(OPS.entropy_grad, (*saved, *spec))
