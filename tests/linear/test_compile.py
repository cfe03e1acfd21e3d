"""``torch.compile(fullgraph=True)`` gives what eager gives, for any number of rows."""

import shutil

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import anl_kernels as ak
from tests.cases import CASES, KINDS, over
from tests.linear.heads import chunks_of, fused, fused_loss, random_head

TERMS = CASES["ANL-CE"]

pytestmark = [
    # Said by the compiler of its own modules while it loads.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="needs a C++ compiler"
)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def head(device):
    return random_head((7,), dtype=torch.float32, device=device).with_ignored(2)


def compiled(function, compiler="aot_eager", **options):
    return torch.compile(function, fullgraph=True, backend=compiler, **options)


def loss_of(terms=TERMS, **options):
    def loss(hidden, weight, bias, target):
        args = (hidden * 1, weight, target, terms, bias)
        return ak.linear_robust_loss(*args, chunk_bytes=100, **options)

    return loss


def with_gradients(function, head):
    head = head.leaves()
    loss = function(*head)
    return [loss.detach(), *torch.autograd.grad(loss.sum(), head.parameters)]


def assert_same(ours, wanted):
    for actual, value in zip(ours, wanted, strict=True):
        torch.testing.assert_close(actual, value)


def assert_compiles(function, head, **options):
    assert_same(with_gradients(compiled(function, **options), head), with_gradients(function, head))


@over(KINDS)
def test_like_eager(terms, head):
    assert_compiles(loss_of(terms), head)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_backends(reduction, backend, head):
    assert_compiles(loss_of(reduction=reduction), head)


@needs_compiler
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_inductor(reduction, head):
    assert_compiles(loss_of(reduction=reduction), head, compiler="inductor")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype, head):
    assert_compiles(loss_of(), head.to(dtype))


OPTIONS = {
    "weight": lambda device: {"weight": torch.rand(9, device=device)},
    "sample_weight": lambda device: {"sample_weight": torch.rand(7, device=device)},
    "class_scale": lambda device: {"class_scale": "auto"},
    "softcap": lambda device: {"logit_softcap": 5.0},
    "not-skipped": lambda device: {"skip_ignored": False},
    "accum_dtype": lambda device: {"accum_dtype": torch.float32},
    "padding": lambda device: {"num_classes": 8},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_options(option, head, device):
    head.target.clamp_(max=7)
    assert_compiles(loss_of(**OPTIONS[option](device)), head)


@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_dynamic_numbers_of_rows(reduction, marked, device):
    count = CompileCounterWithBackend("aot_eager")
    function = compiled(loss_of(reduction=reduction), count)
    for rows in (4, 6, 9):
        head = random_head((rows,), dtype=torch.float32, device=device).leaves()
        if marked:
            torch._dynamo.mark_dynamic(head.hidden, 0)
            torch._dynamo.mark_dynamic(head.target, 0)
        loss = function(*head)
        grads = torch.autograd.grad(loss.sum(), head.parameters)
        wanted = with_gradients(loss_of(reduction=reduction), head)
        assert_same([loss.detach(), *grads], wanted)
    assert count.frame_count <= (1 if marked else 2)


def test_everything_dynamic(head):
    assert_compiles(loss_of(), head, dynamic=True)


@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
def test_frozen(frozen, head):
    def gradients(function):
        leaves = head.leaves()
        getattr(leaves, frozen).requires_grad_(False)
        wanted = [tensor for tensor in leaves.parameters if tensor.requires_grad]
        return torch.autograd.grad(function(*leaves), wanted)

    assert_same(gradients(compiled(loss_of())), gradients(loss_of()))


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_without_gradients(without, head):
    with without():
        assert_same([compiled(loss_of())(*head)], [loss_of()(*head)])


def test_autocast(head, device):
    def gradients(function):
        with torch.autocast(device.type, dtype=torch.bfloat16):
            return with_gradients(function, head)

    assert_same(gradients(compiled(loss_of())), gradients(loss_of()))


def test_aux(head):
    def loss(hidden, weight, bias, target):
        return ak.linear_robust_loss(hidden, weight, target, TERMS, bias, return_aux=True)

    _, ours = compiled(loss)(*head.leaves())
    _, wanted = loss(*head)
    for name in ("term_losses", "lse", "p_y", "argmax"):
        torch.testing.assert_close(getattr(ours, name), getattr(wanted, name))


@pytest.mark.parametrize("options", [{}, {"weight": torch.rand(9)}, {"logit_softcap": 5.0}])
def test_a_training_step(options, head, device):
    alpha = torch.nn.Parameter(torch.tensor(2.0))
    criterion = ak.LinearRobustLoss(torch.nn.Linear(6, 9), alpha * ak.NCE() + ak.MAE(), **options)
    criterion.to(device)

    def gradients(module):
        criterion.zero_grad()
        module(head.hidden, head.target).backward()
        return [parameter.grad.clone() for parameter in criterion.parameters()]

    assert_same(gradients(compiled(criterion)), gradients(criterion))


def test_accumulation(head):
    function = compiled(loss_of())
    leaves = head.leaves()
    for _ in range(2):
        (function(*leaves) / 2).backward()
    assert_same([t.grad for t in leaves.parameters], fused(head, TERMS, **chunks_of(3, head))[1:])


def test_a_wrong_label_raises(head, backend):
    head.target[1] = 9
    loss = compiled(loss_of(reduction="none"))
    with ak.check_labels(), pytest.raises(IndexError, match=r"target\[1\] is 9"):
        loss(*head)
    if head.target.is_cuda:
        assert loss(*head).isnan().nonzero().tolist() == [[1]]


def scheduled(t):
    return (5 * t + 1) * ak.NCE() + ak.GCE(q=t) + (1 - t) * ak.NNCE(min_prob=1e-3 * t)


def annealed_argument(head):
    def loss(terms, hidden, weight, bias, target):
        return ak.linear_robust_loss(hidden * 1, weight, target, terms, bias, chunk_bytes=100)

    return loss, lambda function, leaves, t: function(scheduled(t), *leaves)


def annealed_number(head):
    def loss(t, hidden, weight, bias, target):
        terms = t * ak.NCE() + ak.GCE(q=t)
        return ak.linear_robust_loss(hidden * 1, weight, target, terms, bias, class_scale=2 * t)

    return loss, lambda function, leaves, t: function(t, *leaves)


def annealed_module(head):
    linear = torch.nn.Linear(6, 9, device=head.hidden.device)
    criterion = ak.LinearRobustLoss(linear, scheduled(0.5))

    def call(function, leaves, t):
        criterion.terms = scheduled(t)
        return function(leaves.hidden, leaves.target) + 0 * (
            leaves.weight.sum() + leaves.bias.sum()
        )

    return criterion, call


def annealed_closure(head):
    terms = scheduled(0.5)

    def call(function, leaves, t):
        nonlocal terms
        terms = scheduled(t)
        return function(*leaves)

    return (lambda *leaves: loss_of(terms)(*leaves)), call


ANNEALED = [annealed_argument, annealed_number, annealed_module, annealed_closure]


def assert_one_graph(make, num_values, head, compiler="aot_eager"):
    count = CompileCounterWithBackend(compiler)
    function, call = make(head)
    ours = compiled(function, count)
    for step in range(1, num_values + 1):
        t = step / (num_values + 1)
        made, wanted = (
            with_gradients(lambda *leaves, f=f, t=t: call(f, type(head)(*leaves), t), head)
            for f in (ours, function)
        )
        assert_same(made, wanted)
    assert count.frame_count <= 2


@pytest.mark.parametrize("make", ANNEALED, ids=[make.__name__ for make in ANNEALED])
def test_a_schedule_is_one_graph(make, head):
    assert_one_graph(make, 50, head)


def test_a_schedule_is_one_graph_on_every_backend(backend, head):
    assert_one_graph(annealed_module, 9, head)


@needs_compiler
def test_a_schedule_is_one_graph_of_inductor(head):
    assert_one_graph(annealed_module, 5, head, compiler="inductor")


def test_a_compiled_loss_beside_an_eager_one(head):
    leaves = head.leaves()
    loss = compiled(loss_of())(*leaves) + fused_loss(leaves, TERMS)
    grads = torch.autograd.grad(loss, leaves.parameters)
    assert_same([grad / 2 for grad in grads], fused(head, TERMS)[1:])
