"""``torch.compile(fullgraph=True)`` gives what eager gives, for any number of rows."""

import dataclasses
import shutil

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import anl_kernels as ak
from tests.cases import CASES, over
from tests.cases import TERMS as ALL_TERMS
from tests.helpers import loss_and_grad, random_rows

TERMS = CASES["ANL-CE"]

pytestmark = [
    # Said by the compiler of its own modules while it loads.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

COMPILERS = [
    "aot_eager",
    pytest.param(
        "inductor",
        marks=pytest.mark.skipif(
            not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="needs a C++ compiler"
        ),
    ),
]


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled_loss_and_grad(function, logits, *args):
    logits = logits.detach().requires_grad_()
    loss = function(logits, *args)
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    return loss.detach(), grad


def assert_same(ours, wanted):
    for actual, value in zip(ours, wanted, strict=True):
        torch.testing.assert_close(actual, value)


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_terms_made_inside(reduction, compiler, backend, device):
    @torch.compile(fullgraph=True, backend=compiler)
    def loss(z, y):
        terms = 5.0 * ak.NCE() + 5.0 * ak.NNCE(min_prob=1e-3)
        return ak.robust_loss(z * 1.0, y, terms, reduction=reduction)

    logits, target = random_rows(4, 7, torch.float32, device)
    terms = 5.0 * ak.NCE() + 5.0 * ak.NNCE(min_prob=1e-3)
    wanted = loss_and_grad(logits, target, terms, reduction=reduction)
    assert_same(compiled_loss_and_grad(loss, logits, target), wanted)


@pytest.mark.parametrize("compiler", COMPILERS)
def test_a_training_step(compiler, backend, device):
    model = torch.nn.Linear(5, 7).to(device)
    criterion = ak.ActiveNegativeLoss(ignore_index=2, weight=torch.rand(7, device=device))
    inputs, target = torch.randn(4, 5, device=device), torch.tensor([0, 2, 6, 3], device=device)

    def step(x, y):
        return criterion(model(x), y)

    step(inputs, target).backward()
    wanted = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    torch.compile(step, fullgraph=True, backend=compiler)(inputs, target).backward()
    assert_same([parameter.grad for parameter in model.parameters()], wanted)


@over()
def test_every_term(terms, backend, device):
    loss = torch.compile(
        lambda z, y: ak.robust_loss(z, y, terms), fullgraph=True, backend="aot_eager"
    )
    logits, target = random_rows(3, 5, torch.float32, device)
    wanted = loss_and_grad(logits, target, terms)
    assert_same(compiled_loss_and_grad(loss, logits, target), wanted)


@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_dynamic_numbers_of_rows(reduction, marked, backend, device):
    count = CompileCounterWithBackend("aot_eager")
    loss = torch.compile(
        lambda z, y: ak.robust_loss(z, y, TERMS, reduction=reduction), fullgraph=True, backend=count
    )
    for num_rows in (4, 6, 9):
        logits, target = random_rows(num_rows, 5, torch.float32, device)
        leaf = logits.detach().requires_grad_()
        if marked:
            torch._dynamo.mark_dynamic(leaf, 0)
            torch._dynamo.mark_dynamic(target, 0)
        value = loss(leaf, target)
        (grad,) = torch.autograd.grad(value.sum(), leaf)
        wanted = loss_and_grad(logits, target, TERMS, reduction=reduction)
        assert_same((value.detach(), grad), wanted)
    assert count.frame_count <= (1 if marked else 2)


@pytest.mark.parametrize("shape", [(5,), (2, 5, 3), (2, 5, 2, 3)], ids=str)
def test_shapes(shape, backend, device):
    logits = torch.randn(shape, device=device)
    batch = shape[:1] + shape[2:] if len(shape) > 1 else ()
    target = torch.randint(5, batch, device=device)
    loss = torch.compile(
        lambda z, y: ak.robust_loss(z, y, TERMS), fullgraph=True, backend="aot_eager"
    )
    wanted = loss_and_grad(logits, target, TERMS)
    assert_same(compiled_loss_and_grad(loss, logits, target), wanted)


@pytest.mark.parametrize("arrange", ["channels_last", "transposed"])
def test_strides(arrange, backend, device):
    logits = torch.randn(2, 5, 3, 4, device=device)
    logits = (
        logits.contiguous(memory_format=torch.channels_last)
        if arrange == "channels_last"
        else logits.transpose(2, 3)
    )
    target = torch.randint(5, logits.shape[:1] + logits.shape[2:], device=device)
    loss = torch.compile(
        lambda z, y: ak.robust_loss(z, y, TERMS), fullgraph=True, backend="aot_eager"
    )
    wanted = loss_and_grad(logits, target, TERMS)
    assert_same(compiled_loss_and_grad(loss, logits, target), wanted)


OPTIONS = {
    "weight": lambda device: {"weight": torch.rand(5, device=device)},
    "sample_weight": lambda device: {"sample_weight": torch.rand(4, device=device)},
    "class_scale": lambda device: {"class_scale": "auto"},
    "inplace": lambda device: {"inplace": True},
    "sum": lambda device: {"reduction": "sum"},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_options(option, backend, device):
    logits, target = random_rows(4, 5, torch.float32, device)
    options = OPTIONS[option](device)
    loss = torch.compile(
        lambda z, y: ak.robust_loss(z * 1.0, y, TERMS, **options),
        fullgraph=True,
        backend="aot_eager",
    )
    options.pop("inplace", None)
    wanted = loss_and_grad(logits, target, TERMS, **options)
    options.update(OPTIONS[option](device) if option == "inplace" else {})
    assert_same(compiled_loss_and_grad(loss, logits, target), wanted)


def test_aux(backend, device):
    logits, target = random_rows(4, 5, torch.float32, device)
    loss = torch.compile(
        lambda z, y: ak.robust_loss(z, y, TERMS, return_aux=("lse", "argmax", "probs")),
        fullgraph=True,
        backend="aot_eager",
    )
    _, aux = loss(logits, target)
    torch.testing.assert_close(aux.lse, logits.logsumexp(1))
    torch.testing.assert_close(aux.probs, logits.softmax(1))
    assert torch.equal(aux.argmax, logits.argmax(1))


def test_tensor_weights(backend, device):
    """Made outside: Dynamo takes the product of a tensor and a term for one of tensors."""
    logits, target = random_rows(4, 5, torch.float32, device)
    alpha = torch.nn.Parameter(torch.tensor(2.0, device=device))
    module = ak.RobustLoss(alpha * ak.NCE() + ak.MAE())

    def grads(function):
        leaf = logits.clone().requires_grad_()
        return torch.autograd.grad(function(leaf, target), (leaf, alpha))

    assert_same(grads(torch.compile(module, fullgraph=True, backend="aot_eager")), grads(module))


def test_softmax(backend, device):
    logits = torch.randn(3, 5, device=device)
    function = torch.compile(ak.softmax, fullgraph=True, backend="aot_eager")
    leaf = logits.clone().requires_grad_()
    up = torch.randn_like(logits)
    (grad,) = torch.autograd.grad(function(leaf), leaf, up)
    (wanted,) = torch.autograd.grad(leaf.softmax(-1), leaf, up)
    torch.testing.assert_close(grad, wanted)


def losses_of(logits, target):
    return ak.robust_loss(logits, target, TERMS, reduction="none")


@pytest.mark.parametrize("compiler", COMPILERS)
def test_a_wrong_label_raises(compiler, backend, device):
    """As in eager code: always on a CPU, and where asked for on a GPU; back again afterwards."""
    logits, target = random_rows(3, 5, torch.float32, device)
    wrong = target.clone()
    wrong[1] = 7
    loss = torch.compile(losses_of, fullgraph=True, backend=compiler)
    with ak.check_labels():
        with pytest.raises(IndexError, match=r"target\[1\] is 7, outside \[0, 5\).*-100"):
            loss(logits, wrong)
        torch.testing.assert_close(loss(logits, target), losses_of(logits, target))
    if device.type == "cuda":
        assert loss(logits, wrong).isnan().tolist() == [False, True, False]
    else:
        with pytest.raises(IndexError, match=r"target\[1\]"):
            loss(logits, wrong)


LABELLED = {
    "log_prob": lambda z, y: ak.log_prob(z, y),
    "log_probs": lambda z, y: ak.log_prob(z, torch.stack([y, y], 1)),
    "LogProbLoss": lambda z, y: ak.LogProbLoss(lambda log_p: -log_p)(z, y),
    "entropy": lambda z, y: ak.EntropyRegularisedLoss(ak.RobustLoss(TERMS), 1.0)(z, y),
    "negative-learning": lambda z, y: ak.recipes.NegativeLearning(5).to(z.device)(z, y),
    "truncated": lambda z, y: ak.recipes.TruncatedGCE(3).to(z.device)(
        z, y, torch.arange(3, device=z.device)
    ),
    "int32": lambda z, y: ak.robust_loss(z, y.int(), TERMS, ignore_index=2),
}


@pytest.mark.parametrize("function", LABELLED.values(), ids=list(LABELLED))
def test_a_wrong_label_raises_at_every_door(function, device):
    logits, target = random_rows(3, 5, torch.float32, device)
    target[2] = -3
    with ak.check_labels(), pytest.raises(IndexError, match=r"\[2(, 0)?\] is -3"):
        torch.compile(function, fullgraph=True, backend="aot_eager")(logits, target)


def scheduled(t):
    """A sum of terms whose numbers all move."""
    return (5 * t + 1) * ak.NCE() + (2 - t) * ak.GCE(q=0.1 + t) + t * ak.NNCE(min_prob=1e-3 * t)


class Held:
    terms = scheduled(0.5)


def annealed_argument():
    return (lambda z, y, terms: ak.robust_loss(z, y, terms)), lambda f, z, y, t: f(
        z, y, scheduled(t)
    )


def annealed_number():
    """Floats of which terms are made inside; one of them by a named function."""

    def loss(z, y, t):
        terms = t * ak.NCE() + ak.AGCE(1 + t, t) + ak.ZLoss() * (0.1 * t)
        named = ak.anl(z, y, alpha=t, beta=1 + t, min_prob=0.01 * t, class_scale=2 * t)
        return named + ak.robust_loss(z, y, terms)

    return loss, lambda f, z, y, t: f(z, y, t)


def annealed_module():
    criterion = ak.ActiveNegativeLoss(class_scale=0.5)

    def call(f, z, y, t):
        criterion.terms, criterion.options["class_scale"] = scheduled(t), t
        return f(z, y)

    return criterion, call


def annealed_beside_a_learned_weight():
    weight = torch.tensor(2.0, requires_grad=True)
    criterion = ak.RobustLoss(weight * ak.NCE())

    def call(f, z, y, t):
        criterion.terms = t * (weight * ak.NCE()) + scheduled(t)
        return f(z, y)

    return criterion, call


def annealed_closure():
    terms = scheduled(0.5)

    def call(f, z, y, t):
        nonlocal terms
        terms = scheduled(t)
        return f(z, y)

    return (lambda z, y: ak.robust_loss(z, y, terms, reduction="sum")), call


def annealed_global():
    def call(f, z, y, t):
        Held.terms = scheduled(t)
        return f(z, y)

    return (lambda z, y: ak.robust_loss(z, y, Held.terms, return_aux=True)[0]), call


def annealed_recipe():
    criterion = ak.recipes.TruncatedGCE(4)

    def call(f, z, y, t):
        criterion.terms, criterion.loss_at_k = 1.0 * ak.GCE(t), t
        return f(z, y, torch.arange(4, device=y.device))

    return criterion, call


def annealed_head():
    return (
        lambda z, y, q: ak.LogProbLoss(lambda log_p: -torch.expm1(q * log_p) / q)(z, y),
        lambda f, z, y, t: f(z, y, t),
    )


def annealed_regulariser():
    criterion = ak.EntropyRegularisedLoss(ak.RobustLoss(scheduled(0.5)), weight=1.0)

    def call(f, z, y, t):
        criterion.weight, criterion.criterion.terms = t, scheduled(t)
        return f(z, y)

    return criterion, call


ANNEALED = [value for name, value in list(globals().items()) if name.startswith("annealed_")]


def assert_one_graph(make, num_values, device, compiler="aot_eager"):
    """The first value's graph, and one for all that follow; values and gradients as eager's."""
    function, call = make()
    if isinstance(function, torch.nn.Module):
        function.to(device)
    count = CompileCounterWithBackend(compiler)
    compiled = torch.compile(function, fullgraph=True, backend=count)
    logits, target = random_rows(4, 7, torch.float32, device)
    for step in range(1, num_values + 1):
        t = step / (num_values + 1)
        ours, wanted = (
            compiled_loss_and_grad(lambda z, f=f, t=t: call(f, z, target, t), logits)
            for f in (compiled, function)
        )
        assert_same(ours, wanted)
    assert count.frame_count <= 2


@pytest.mark.parametrize("make", ANNEALED, ids=[make.__name__ for make in ANNEALED])
def test_a_schedule_is_one_graph(make, device):
    assert_one_graph(make, 50, device)


@pytest.mark.parametrize("make", ANNEALED[:3], ids=[make.__name__ for make in ANNEALED[:3]])
def test_a_schedule_is_one_graph_on_every_backend(make, backend, device):
    assert_one_graph(make, 9, device)


@pytest.mark.parametrize("compiler", COMPILERS[1:])
def test_a_schedule_is_one_graph_of_inductor(compiler, device):
    assert_one_graph(annealed_module, 9, device, compiler)


SCHEDULES = {
    "CE": lambda t: ak.CE(0.5 * t),
    "NNCE": lambda t: ak.NNCE(0.1 * t, 0.9 + 0.05 * t),
    "FL": lambda t: ak.FL(0.5 + t, detach_weight=False),
    "NFL": lambda t: ak.NFL(0.5 + t),
    "NNFL": lambda t: ak.NNFL(0.5 + t, 0.1 * t),
    "GCE": lambda t: ak.GCE(t, 0.1 * t),
    "RCE": lambda t: ak.RCE(0.1 * t, 0.1 * t),
    "AGCE": lambda t: ak.AGCE(1 + t, 0.5 + t),
    "AUL": lambda t: ak.AUL(1.5 + t, 0.5 + t),
    "AEL": lambda t: ak.AEL(1 + t),
    "NGCE": lambda t: ak.NGCE(0.1 + t, 0.1 * t),
    "AMSE": lambda t: ak.AMSE(1 + t),
    "RelativeGCE": lambda t: ak.RelativeGCE(0.1 + t),
    "EpsilonCE": lambda t: ak.EpsilonCE(10 * t, 1e-3 * t),
    "EpsilonFL": lambda t: ak.EpsilonFL(10 * t, t, 1e-3 * t),
    "OnlyTopP": lambda t: ak.OnlyTopP(0.1 * t),
    "OnlyBottomP": lambda t: ak.OnlyBottomP(t),
    "OnlyTopLogP": lambda t: ak.OnlyTopLogP(0.1 * t),
    "OnlyBottomLogP": lambda t: ak.OnlyBottomLogP(t),
    "EAFT": lambda t: ak.EAFT(0.5 + t, 2 + t),
}


def test_every_term_with_numbers_has_a_schedule():
    numbered = {type(term).__name__ for term in ALL_TERMS.values() if dataclasses.fields(term)}
    assert numbered == set(SCHEDULES)


@pytest.mark.parametrize("chosen", ["reference", "auto"])
@pytest.mark.parametrize("terms_at", SCHEDULES.values(), ids=list(SCHEDULES))
def test_a_schedule_of_every_term(terms_at, chosen, device):
    """The reference's formulas are traced, and must not make a number a constant either."""

    def make():
        return (lambda z, y, terms: ak.robust_loss(z, y, terms)), lambda f, z, y, t: f(
            z, y, terms_at(t)
        )

    with ak.use_backend(chosen):
        assert_one_graph(make, 4, device)


def test_a_whole_number_may_move(device):
    def make():
        return (
            lambda z, y, n: ak.robust_loss(z, y, n * ak.MAE() + ak.AGCE(a=n, q=2)),
            lambda f, z, y, t: f(z, y, round(20 * t)),
        )

    assert_one_graph(make, 9, device)


def test_a_bad_number_raises_in_the_middle_of_a_schedule(device):
    logits, target = random_rows(4, 7, torch.float32, device)
    loss = torch.compile(lambda z, y, q: ak.robust_loss(z, y, ak.GCE(q)), backend="aot_eager")
    for q in (0.5, 0.6, 0.7):
        loss(logits, target, q)
    with pytest.raises(ValueError, match=r"GCE: q must be.*-0\.1"):
        loss(logits, target, -0.1)


COMPILED_TRANSFORMS = {
    "loss": lambda z, y: ak.robust_loss(z, y, TERMS),
    "target_b": lambda z, y: ak.robust_loss(z, y, TERMS, target_b=y.flip(0), lam=0.3),
    "log_prob": lambda z, y: ak.log_prob(z, y).sum(),
    "several": lambda z, y: ak.log_prob(z, torch.stack([y, y.flip(0)], 1)).sum(),
    "softmax": lambda z, y: ak.softmax(z)[:, 0].sum(),
}


@pytest.mark.parametrize("loss", COMPILED_TRANSFORMS.values(), ids=list(COMPILED_TRANSFORMS))
def test_transforms_of_functorch_inside(loss, device):
    logits, target = random_rows(4, 7, torch.float64, device)
    gradient = torch.func.grad(loss)
    compiled = torch.compile(gradient, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(logits, target), gradient(logits, target))


def test_vmap_inside_under_autograd(device):
    logits, target = random_rows(4, 7, torch.float64, device)
    logits.requires_grad_()
    losses = torch.func.vmap(lambda z, y: ak.robust_loss(z, y, TERMS))
    compiled = torch.compile(losses, fullgraph=True, backend="aot_eager")
    (ours,) = torch.autograd.grad(compiled(logits, target).sum(), logits)
    (wanted,) = torch.autograd.grad(losses(logits, target).sum(), logits)
    torch.testing.assert_close(ours, wanted)
