"""Log-probabilities out of hidden states: those of the formula, a chunk of rows at a time."""

import shutil

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

import anl_kernels as ak
from tests.helpers import error
from tests.linear.heads import IGNORE, chunks_of, random_head

CLASSES = 9
DIGITS = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-6, torch.float16: 1e-6}
over_dtypes = pytest.mark.parametrize("dtype", DIGITS, ids=str)
SHAPES = {
    "one": ((7,), ()),
    "one-row": ((), ()),
    "one-sequence": ((2, 5), ()),
    "several": ((7,), (4,)),
    "several-one": ((7,), (1,)),
    "several-row": ((), (3,)),
    "several-sequence": ((2, 5), (3,)),
    "several-more-than-classes": ((3,), (12,)),
    "no-rows": ((0,), (4,)),
    "no-row": ((0,), ()),
}
over_shapes = pytest.mark.parametrize(("shape", "several"), SHAPES.values(), ids=list(SHAPES))


def problem(shape, several=(), dtype=torch.float64, device="cpu", bias=True):
    """A head whose labels are classes (*shape, *several), of which some are ignored."""
    head = random_head(shape, classes=CLASSES, dtype=dtype, device=device, bias=bias)
    classes = torch.randint(CLASSES, (*shape, *several), device=device)
    classes.view(-1)[-1:] = IGNORE
    if len(shape) and several:
        classes.view(-1, *several)[1:2] = IGNORE
    return head._replace(target=classes)


def logits_of(head, softcap=None, temperature=1.0):
    logits = F.linear(head.hidden, head.weight, head.bias)
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    return logits / temperature


def formula(head, **options):
    log_p = logits_of(head, **options).log_softmax(-1)
    one = head.target.dim() < head.hidden.dim()
    places = head.target.unsqueeze(-1) if one else head.target
    found = log_p.gather(-1, places.clamp(min=0)).masked_fill(places == IGNORE, 0)
    return found.squeeze(-1) if one else found


def fused(head, softcap=None, **options):
    hidden, weight, bias, classes = head
    return ak.linear_log_prob(hidden, weight, classes, bias, logit_softcap=softcap, **options)


def with_gradients(function, head, upstream):
    head = head.leaves()
    log_p = function(head)
    grads = torch.autograd.grad(log_p, head.parameters, upstream.to(log_p.dtype))
    return log_p.detach(), *grads


def assert_like_formula(head, tolerance=1e-12, softcap=None, temperature=1.0, **options):
    upstream = torch.randn(head.target.shape, dtype=torch.float64, device=head.hidden.device)
    law = {"softcap": softcap, "temperature": temperature}
    ours = with_gradients(lambda h: fused(h, **law, **options), head, upstream)
    wanted = with_gradients(lambda h: formula(h, **law), head.to(torch.float64), upstream)
    for actual, exact in zip(ours, wanted, strict=True):
        assert actual.shape == exact.shape
        assert error(actual, exact) <= tolerance


@over_shapes
def test_values_and_gradients(shape, several, backend, device):
    head = problem(shape, several, device=device)
    assert_like_formula(head, **chunks_of(3, head))


@over_dtypes
@pytest.mark.parametrize("several", [(), (4,)], ids=["one", "several"])
def test_dtypes(several, dtype, quick, device):
    """Logits are rounded to the dtype, as those of eager code are."""
    head = problem((64,), several, dtype=dtype, device=device)
    upstream = torch.randn(head.target.shape, dtype=torch.float64, device=device)
    ours = with_gradients(lambda h: fused(h, **chunks_of(10, head)), head, upstream)
    wanted = with_gradients(formula, head.to(torch.float64), upstream)

    theirs = with_gradients(lambda h: formula(h).to(ours[0].dtype), head, upstream)
    assert ours[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    eps = DIGITS[dtype] if dtype == torch.float64 else torch.finfo(dtype).eps  # peer is the truth
    for actual, peer, exact in zip(ours, theirs, wanted, strict=True):
        assert error(actual, exact) <= 1.1 * error(peer, exact) + eps


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("temperature", [0.7, 3])
@pytest.mark.parametrize("several", [(), (4,)], ids=["one", "several"])
def test_temperature_and_softcap(several, temperature, softcap, quick, device):
    head = problem((7,), several, device=device)
    options = {"softcap": softcap, "temperature": temperature}
    assert_like_formula(head, **options, **chunks_of(3, head))


@pytest.mark.parametrize("options", [{}, {"softcap": 2.0, "temperature": 0.7}], ids=["", "law"])
@over_shapes
def test_derivatives(shape, several, options, quick, device):
    head = problem(shape, several, device=device)
    if len(shape) == 1:
        head = head._replace(hidden=head.hidden[:2], target=head.target[:2])
    head = head.leaves()

    def log_p(hidden, weight, bias):
        return fused(head._replace(hidden=hidden, weight=weight, bias=bias), **options)

    assert torch.autograd.gradcheck(log_p, head.parameters)
    assert torch.autograd.gradgradcheck(log_p, head.parameters)


@pytest.mark.parametrize("skip", [False, True, None])
@pytest.mark.parametrize("several", [(), (4,)], ids=["one", "several"])
def test_ignored_rows_may_hold_anything(several, skip, quick, device):
    head = problem((7,), several, device=device)
    head.target.view(7, -1)[3] = IGNORE
    upstream = torch.randn(head.target.shape, dtype=torch.float64, device=device)
    wanted = with_gradients(fused, head, upstream)
    hidden = head.hidden.clone()
    hidden[3] = torch.nan
    ours = with_gradients(
        lambda h: fused(h, skip_ignored=skip, **chunks_of(2, head)),
        head._replace(hidden=hidden),
        upstream,
    )
    torch.testing.assert_close(ours, wanted)
    assert not ours[1][3].any()


@pytest.mark.parametrize("several", [(), (4,)], ids=["one", "several"])
def test_padded_vocabulary(several, quick, device):
    head = problem((7,), several, device=device)
    padded = head._replace(
        weight=F.pad(head.weight, (0, 0, 0, 3), value=torch.nan),
        bias=F.pad(head.bias, (0, 3), value=torch.nan),
    )
    upstream = torch.randn(head.target.shape, dtype=torch.float64, device=device)
    wanted = with_gradients(fused, head, upstream)
    ours = with_gradients(lambda h: fused(h, num_classes=CLASSES), padded, upstream)
    for actual, exact in zip(ours, wanted, strict=True):
        whole = torch.zeros_like(actual)
        whole[tuple(map(slice, exact.shape))] = exact
        torch.testing.assert_close(actual, whole)


@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
@pytest.mark.parametrize("several", [(), (4,)], ids=["one", "several"])
def test_what_needs_no_gradient_costs_no_product(several, frozen, device):
    head = problem((7,), several, device=device).leaves()
    head = head._replace(**{frozen: getattr(head, frozen).detach()})
    counter = FlopCounterMode(display=False)
    with counter:
        log_p = fused(head, skip_ignored=False)
        grads = torch.autograd.grad(log_p.sum(), [t for t in head.parameters if t.requires_grad])
    assert len(grads) == 2
    product = 2 * 7 * 6 * CLASSES
    assert counter.get_total_flops() == product * (4 if frozen == "bias" else 3)
    with torch.no_grad():
        torch.testing.assert_close(fused(head), log_p)


@pytest.mark.parametrize("several", [(), (4,)], ids=["one", "several"])
def test_one_tensor_for_hidden_and_weight(several, device):
    head = problem((CLASSES,), several, device=device)
    weight = head.weight.requires_grad_()
    one = ak.linear_log_prob(weight * 2, weight, head.target)
    two = formula(head._replace(hidden=weight * 2, bias=None))
    ours, wanted = (torch.autograd.grad(v.square().sum(), weight)[0] for v in (one, two))
    torch.testing.assert_close(ours, wanted)


@pytest.mark.parametrize("several", [(), (4,)], ids=["one", "several"])
def test_autocast(several, quick, device):
    head = problem((7,), several, dtype=torch.float32, device=device).leaves()
    with torch.autocast(device.type, torch.bfloat16):
        ours = fused(head)
    narrow = head.to(torch.bfloat16)
    torch.testing.assert_close(ours.detach(), fused(narrow))
    grads = torch.autograd.grad(ours.sum(), head.parameters)
    assert all(grad.dtype == torch.float32 for grad in grads)


def test_classes_of_high_probability_keep_their_digits(quick, device):
    hidden = torch.eye(2, device=device)
    weight = torch.tensor([[0.0, 30.0], [18.0, 0.0], [0.0, 0.0]], device=device)
    one = ak.linear_log_prob(hidden, weight, torch.tensor([1, 0], device=device))
    two = ak.linear_log_prob(hidden, weight, torch.tensor([[1, 2], [2, 0]], device=device))
    exact = (hidden.double() @ weight.double().t()).log_softmax(1)
    rest = 2 * torch.exp(torch.tensor([-18.0, -30.0], dtype=torch.float64, device=device))
    wanted = -torch.log1p(rest)
    for found in (one, torch.stack([two[0, 0], two[1, 1]])):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=0)
    assert error(two, exact.gather(1, torch.tensor([[1, 2], [2, 0]], device=device))) <= 1e-6


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
@pytest.mark.parametrize("several", [(), (4,)], ids=["one", "several"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compiled(several, compiler, device):
    if compiler == "inductor" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("needs a C++ compiler")
    torch.compiler.reset()

    @torch.compile(fullgraph=True, backend=compiler, dynamic=True)
    def step(hidden, weight, bias, classes):
        return ak.linear_log_prob(hidden * 1, weight, classes, bias, temperature=0.7)

    for rows in (7, 5):
        head = problem((rows,), several, dtype=torch.float32, device=device)
        upstream = torch.randn(head.target.shape, device=device)
        ours = with_gradients(lambda h: step(*h), head, upstream)
        wanted = with_gradients(lambda h: fused(h, temperature=0.7), head, upstream)
        torch.testing.assert_close(ours, wanted)
    with pytest.raises(IndexError, match=r"classes\[.*\] is 9, outside"):
        step(*head._replace(target=torch.full_like(head.target, CLASSES)))
    torch.compiler.reset()


@pytest.mark.parametrize("several", [(), (4,)], ids=["one", "several"])
def test_transforms(several, quick, device):
    head = problem((3, 5), several, device=device)

    def of_sample(hidden, classes):
        return ak.linear_log_prob(hidden, head.weight, classes, head.bias)

    torch.testing.assert_close(torch.func.vmap(of_sample)(head.hidden, head.target), formula(head))
    tangent = torch.randn_like(head.hidden)
    ours = torch.func.jvp(lambda h: of_sample(h, head.target), (head.hidden,), (tangent,))
    wanted = torch.func.jvp(lambda h: formula(head._replace(hidden=h)), (head.hidden,), (tangent,))
    torch.testing.assert_close(ours, wanted)


def test_like_the_logits_in_two_steps(device):
    head = problem((7,), (4,), dtype=torch.float32, device=device)
    torch.testing.assert_close(fused(head), ak.log_prob(logits_of(head), head.target))


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        (
            {"classes": torch.zeros(6, dtype=torch.int64)},
            ValueError,
            r"classes must have shape \(7",
        ),
        ({"classes": torch.zeros(7, 0, dtype=torch.int64)}, ValueError, "classes must have shape"),
        ({"classes": torch.zeros(7)}, TypeError, "classes must be int64 or int32"),
        ({"classes": [1] * 7}, TypeError, "classes must be a"),
        ({"classes": torch.full((7,), 9)}, IndexError, r"classes\[0\] is 9, outside \[0, 9\)"),
        ({"classes": torch.full((7, 2), -1)}, IndexError, r"classes\[0, 0\] is -1"),
        ({"linear_weight": torch.zeros(9, 5)}, ValueError, "hidden must have shape"),
        ({"linear_bias": torch.zeros(8)}, ValueError, "linear_bias must have shape"),
        ({"temperature": 0}, ValueError, "temperature must be a positive number, got 0"),
        ({"temperature": torch.inf}, ValueError, "temperature must be a positive number, got inf"),
        ({"temperature": "hot"}, ValueError, "temperature must be a positive number, got 'hot'"),
        ({"logit_softcap": -1}, ValueError, "logit_softcap must be"),
        ({"chunk_bytes": 0}, ValueError, "chunk_bytes must be"),
        ({"ignore_index": 0.5}, TypeError, "ignore_index must be"),
        ({"num_classes": 10}, ValueError, "num_classes must be"),
    ],
    ids=str,
)
def test_errors(changes, kind, message):
    given = {
        "hidden": torch.zeros(7, 6),
        "linear_weight": torch.zeros(9, 6),
        "classes": torch.zeros(7, dtype=torch.int64),
    }
    with pytest.raises(kind, match=message):
        ak.linear_log_prob(**(given | changes))


def test_a_gradient_along_a_direction_of_its_upstream(backend, device):
    """Forward mode asks for it where reverse mode records nothing."""
    options = {"dtype": torch.float64, "device": device}
    hidden = torch.randn(4, 3, **options, requires_grad=True)
    weight, up, along = torch.randn(5, 3, **options), *torch.randn(2, 4, 2, **options)
    classes = torch.tensor([[0, 1], [2, 2], [4, -100], [3, 0]], device=device)
    made = ak.linear_log_prob(hidden, weight, classes)
    with forward_ad.dual_level():
        (grad,) = torch.autograd.grad(made, hidden, forward_ad.make_dual(up, along))
        _, found = forward_ad.unpack_dual(grad)
    made = ak.linear_log_prob(hidden, weight, classes)
    torch.testing.assert_close(found, torch.autograd.grad(made, hidden, along)[0])
