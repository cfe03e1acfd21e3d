"""``use_backend`` and ``check_labels`` hold for the context that asked for them, and no other."""

import asyncio
import os
import subprocess
import sys
import threading

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import anl_kernels as ak
from anl_kernels.settings import settings
from tests.backends import operators_of
from tests.cases import CASES

# Said by the compiler of its own modules while it loads.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

CONTEXTS = {
    "backend": (lambda: ak.use_backend("reference"), lambda: settings.backend, "auto", "reference"),
    "labels": (ak.check_labels, lambda: settings.check_labels, False, True),
}
over_contexts = pytest.mark.parametrize(
    ("context", "read", "outside", "inside"), CONTEXTS.values(), ids=CONTEXTS
)


@over_contexts
def test_threads_do_not_see_each_other(context, read, outside, inside):
    """Contexts that end in another order than they began leave nothing behind."""
    first_in, second_in, first_out = (threading.Event() for _ in range(3))
    seen = []

    def first():
        with context():
            first_in.set()
            second_in.wait()
            seen.append(read())
        first_out.set()

    def second():
        first_in.wait()
        seen.append(read())
        with context():
            second_in.set()
            first_out.wait()

    threads = [threading.Thread(target=target) for target in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [outside, inside]
    assert read() == outside


@over_contexts
def test_tasks_do_not_see_each_other(context, read, outside, inside):
    async def within():
        with context():
            await asyncio.sleep(0.01)
            return read(), await asyncio.create_task(child())

    async def child():  # a task inherits
        return read()

    async def without():
        await asyncio.sleep(0.005)
        return read()

    async def both():
        return await asyncio.gather(within(), without(), within())

    own = (inside, inside)
    assert asyncio.run(both()) == [own, outside, own]
    assert read() == outside


@over_contexts
def test_as_a_decorator(context, read, outside, inside):
    decorated = context()(read)
    assert [decorated(), decorated(), read()] == [inside, inside, outside]


@over_contexts
def test_nested(context, read, outside, inside):
    with context():
        with context():
            assert read() == inside
        assert read() == inside
    assert read() == outside


def test_the_environment_holds_for_all_threads():
    script = (
        "import threading\n"
        "from anl_kernels.settings import settings\n"
        "seen = []\n"
        "thread = threading.Thread(target=lambda: seen.append(settings.check_labels))\n"
        "thread.start(), thread.join()\n"
        "assert seen == [True] and settings.check_labels\n"
    )
    with_variable(script, "1")


def test_a_value_that_says_nothing_is_told():
    script = (
        "import warnings\n"
        "with warnings.catch_warnings(record=True) as seen:\n"
        "    warnings.simplefilter('always')\n"
        "    from anl_kernels.settings import settings\n"
        "assert any('must be 0 or 1' in str(w.message) for w in seen)\n"
        "assert not settings.check_labels\n"
    )
    with_variable(script, "true")


def with_variable(script, value):
    environment = os.environ | {
        "ANL_KERNELS_CHECK_LABELS": value,
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)


def in_another_thread(function):
    errors = []

    def run():
        try:
            function()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not errors, errors


def rows(device):
    torch.manual_seed(0)
    logits = torch.randn(4, 5, device=device, requires_grad=True)
    return logits, torch.tensor([0, 1, 4, 2], device=device)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_backward_in_another_thread_keeps_the_backend(reduction, kernels, device):
    logits, target = rows(device)
    loss = ak.robust_loss(logits, target, CASES["ANL-CE"], reduction=reduction)
    assert "RowLossFunction" in loss.grad_fn.name()
    in_another_thread(loss.sum().backward)
    wanted = torch.autograd.grad(
        ak.robust_loss(logits, target, CASES["ANL-CE"], reduction=reduction).sum(), logits
    )[0]
    assert torch.equal(logits.grad, wanted)


def test_a_checkpoint_computes_again_where_its_context_says(device):
    """Autograd has threads of its own for GPUs."""
    logits, target = rows(device)
    seen = []

    def loss(z):
        seen.append(settings.backend)
        return ak.robust_loss(z, target, ak.GCE())

    def contexts():
        return ak.use_backend("reference"), ak.use_backend("reference")

    made = checkpoint(loss, logits, use_reentrant=False, context_fn=contexts)
    in_another_thread(made.backward)
    assert seen == ["reference", "reference"]


# What follows is of compiled code, which follows the context of its caller.


@pytest.fixture
def compile(request):
    torch.compiler.reset()
    yield lambda function: torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.compiler.reset()


@pytest.fixture
def calls():
    """Counts the calls of the CPU's kernels in a call of a function that is compiled by then."""
    if torch.cuda.is_available():
        pytest.skip("counts calls of the CPU's kernels")

    def count(function, *args):
        function(*args)
        return operators_of(function, *args).count("cpu::row_loss")

    return count


def gce(logits, target):
    return ak.robust_loss(logits, target, ak.GCE())


def test_compiled_code_sees_a_change_and_each_thread_its_own(compile, calls):
    function, args, elsewhere = compile(gce), rows("cpu"), []

    def run():
        return calls(function, *args)

    assert run() == 1
    with ak.use_backend("reference"):
        assert run() == 0
        in_another_thread(lambda: elsewhere.append(run()))
        assert elsewhere == [1]
    assert run() == 1


def test_contexts_inside_compiled_code(compile, calls):
    def both(*args):
        with ak.use_backend("reference"):
            first = gce(*args)
        return first, gce(*args)

    function, args = compile(both), rows("cpu")
    with ak.check_labels():
        assert calls(function, *args) == 1
        assert settings.check_labels
    assert settings.backend == "auto"
    torch.testing.assert_close(*function(*args))


def test_decorated_compiled_code(compile, calls):
    decorated = ak.use_backend("reference")(gce)
    for function in (compile(decorated), ak.use_backend("reference")(compile(gce))):
        assert calls(function, *rows("cpu")) == 0
    assert settings.backend == "auto"
