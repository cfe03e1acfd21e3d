"""``torch.compile(fullgraph=True)`` gives what eager gives, for any number of rows."""

import shutil

import pytest
import torch

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
    count = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
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


def test_a_wrong_label_is_not_checked_but_is_nan(head):
    """No value may decide what compiled code runs."""
    head.target[1] = 9
    losses = compiled(loss_of(reduction="none"))(*head)
    assert losses.isnan().nonzero().tolist() == [[1]]


def test_a_compiled_loss_beside_an_eager_one(head):
    leaves = head.leaves()
    loss = compiled(loss_of())(*leaves) + fused_loss(leaves, TERMS)
    grads = torch.autograd.grad(loss, leaves.parameters)
    assert_same([grad / 2 for grad in grads], fused(head, TERMS)[1:])
