"""``inplace=True`` gives the gradient that ``inplace=False`` does, or an error."""

import pytest
import torch
from torch.autograd.graph import (
    allow_mutation_on_saved_tensors,
    save_on_cpu,
    saved_tensors_hooks,
)
from torch.utils.checkpoint import checkpoint

import anl_kernels as ak
from tests.helpers import error

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    # Said by Dynamo of arguments that have a graph.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
]

TARGET = torch.tensor([[0, 3, 6], [2, 2, 1]])

# How logits come from the head's output: some save what they return.
PRODUCERS = {
    "linear": lambda z: z,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "softmax": lambda z: z.softmax(-1),
    "softcap": lambda z: 3.0 * torch.tanh(z / 3.0),
}
# Who else makes something of the logits, before the loss.
READERS = {
    "nobody": lambda z: 0.0 * z.sum(),
    "z-loss": lambda z: z.logsumexp(-1).square().mean(),
    "entropy": lambda z: -(z.softmax(-1) * z.log_softmax(-1)).sum(-1).mean(),
    "square": lambda z: z.square().mean(),
    "sigmoid": lambda z: z.sigmoid().mean(),
    "our entropy": lambda z: ak.entropy_regulariser(z.flatten(0, 1)),
    "our loss": lambda z: ak.robust_loss(z.flatten(0, 1), TARGET.flatten(), ak.NCE()),
}
PAIRS = [(p, "nobody") for p in PRODUCERS] + [("linear", r) for r in READERS if r != "nobody"]


def compiled(function):
    return torch.compile(function, backend="aot_eager")


def eager(model, loss, x):
    z, other = model(x)
    return loss(z) + other


def compiled_model(model, loss, x):
    return eager(compiled(model), loss, x)


def compiled_model_by_inductor(model, loss, x):
    return eager(torch.compile(model), loss, x)


def compiled_reader(model, loss, x):
    z, other = model(x)
    own = compiled(lambda z: READERS["z-loss"](z))(z)
    return loss(z) + other + own


def compiled_loss(model, loss, x):
    return eager(model, compiled(loss), x)


def compiled_step(model, loss, x):
    return compiled(lambda x: eager(model, loss, x))(x)


def compiled_with_logits_out(model, loss, x):
    def step(x):
        z, other = model(x)
        return loss(z) + other, z

    total, z = compiled(step)(x)
    return total + z.square().mean()


def in_a_checkpoint(model, loss, x):
    return checkpoint(eager, model, loss, x, use_reentrant=False)


def in_a_reentrant_checkpoint(model, loss, x):
    return checkpoint(eager, model, loss, x, use_reentrant=True)


def after_a_checkpoint(model, loss, x):
    z, other = checkpoint(model, x, use_reentrant=False)
    return loss(z) + other


def under_hooks(model, loss, x):
    with saved_tensors_hooks(lambda t: t, lambda t: t):
        return eager(model, loss, x)


def on_the_cpu(model, loss, x):
    with save_on_cpu():
        return eager(model, loss, x)


def with_copies(model, loss, x):
    with allow_mutation_on_saved_tensors():
        return eager(model, loss, x)


REFUSED = [
    (compiled_model, "come from a function that torch.compile made"),
    (compiled_model_by_inductor, "come from a function that torch.compile made"),
    (in_a_checkpoint, "saved-tensor hook: torch.utils.checkpoint with use_reentrant=False"),
    (under_hooks, "saved_tensors_hooks"),
    (on_the_cpu, "save_on_cpu"),
    (with_copies, "saved-tensor hook"),
]
IGNORED = [compiled_loss, compiled_step, compiled_with_logits_out]
WATCHED = [eager, in_a_reentrant_checkpoint, after_a_checkpoint]


def gradient(context, producer, reader, inplace, reduction="mean"):
    """Of the head's weight, of a loss and of what a reader makes of the same logits."""
    torch.manual_seed(0)
    head, x = torch.nn.Linear(5, 7), torch.randn(2, 3, 5, requires_grad=True)

    def model(x):
        z = PRODUCERS[producer](head(x))
        return z, READERS[reader](z)

    def loss(z):
        rows, options = z.flatten(0, 1), {"inplace": inplace, "reduction": reduction}
        return ak.robust_loss(rows, TARGET.flatten(), ak.GCE(), **options).sum()

    context(model, loss, x).backward()
    return head.weight.grad


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize(("producer", "reader"), PAIRS)
@pytest.mark.parametrize("context", WATCHED, ids=lambda c: c.__name__)
def test_the_gradient_or_an_error(context, producer, reader, reduction):
    wanted = gradient(context, producer, reader, False, reduction)
    try:
        ours, refusal = gradient(context, producer, reader, True, reduction), ""
    except RuntimeError as raised:
        ours, refusal = wanted, str(raised)
    assert error(ours, wanted) <= 1e-6
    assert not refusal or ("inplace" in refusal and (producer, reader) != ("linear", "nobody"))


def test_a_compiled_reader_raises():
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradient(compiled_reader, "linear", "nobody", True)


@pytest.mark.parametrize(("producer", "reader"), [("tanh", "nobody"), ("linear", "z-loss")])
@pytest.mark.parametrize("context", IGNORED, ids=lambda c: c.__name__)
def test_compiled_code_does_not_use_the_permission(context, producer, reader):
    wanted = gradient(context, producer, reader, False)
    assert error(gradient(context, producer, reader, True), wanted) <= 1e-6


@pytest.mark.parametrize(("context", "reason"), REFUSED, ids=lambda c: getattr(c, "__name__", ""))
def test_what_pytorch_does_not_check_is_refused(context, reason):
    with pytest.raises(RuntimeError, match=rf"inplace=True overwrites.*{reason}.*inplace=False"):
        gradient(context, "tanh", "z-loss", True)


def test_without_a_gradient_nothing_is_refused():
    z = torch.compile(lambda z: z * 1, backend="aot_eager")(torch.randn(6, 7))
    with saved_tensors_hooks(lambda t: t, lambda t: t):
        assert ak.robust_loss(z, TARGET.flatten(), ak.GCE(), inplace=True).isfinite()


def test_any_number_of_rows_compiles():
    loss = torch.compile(
        lambda z, y: ak.robust_loss(z * 1, y, ak.GCE(), inplace=True),
        fullgraph=True,
        backend="aot_eager",
        dynamic=True,
    )
    for rows in (6, 4, 9):
        z, y = torch.randn(rows, 7, requires_grad=True), torch.arange(rows) % 7
        wanted = torch.autograd.grad(ak.robust_loss(z, y, ak.GCE()), z)[0]
        assert error(torch.autograd.grad(loss(z, y), z)[0], wanted) <= 1e-6


def test_logits_of_a_compiled_model_in_the_doors_of_transformers():
    from anl_kernels.integrations.transformers import compute_loss_func

    head, x = torch.nn.Linear(5, 7), torch.randn(2, 3, 5)
    logits = torch.compile(head, backend="aot_eager")(x)
    with pytest.raises(RuntimeError, match=r"inplace=True overwrites .* torch\.compile made"):
        compute_loss_func(ak.GCE(), shift=False, inplace=True)((logits,), TARGET)
    assert compute_loss_func(ak.GCE(), shift=False)((logits,), TARGET).isfinite()
