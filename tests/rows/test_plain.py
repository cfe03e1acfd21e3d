"""Plain calls, which go a short way: what they compute, and what does not go there."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import anl_kernels as ak
from anl_kernels.rows.plain import plain_loss
from tests.cases import CASES, KINDS, over
from tests.helpers import random_rows

TERMS = CASES["ANL-CE"]
SHAPES = [(7,), (5, 7), (3, 7, 4), (2, 7, 3, 2), (2, 200)]


@pytest.fixture(autouse=True)
def _on_the_cpu():
    pytest.importorskip("anl_kernels._cpu")
    with ak.use_backend("cpu"):
        yield


def taken(logits, target, terms=TERMS, ignore_index=-100, reduction="mean", class_scale=1.0):
    """Whether the short way is."""
    return plain_loss(logits, target, terms, ignore_index, reduction, class_scale) is not None


def rows(shape=(4, 7), dtype=torch.float32):
    torch.manual_seed(0)
    logits = torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_()
    batch = shape[:1] + shape[2:] if len(shape) > 1 else ()
    return logits, torch.randint(shape[min(len(shape) - 1, 1)], batch)


@pytest.mark.parametrize("class_scale", [2.0, "auto", "row"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_both_ways_compute_the_same_bits(shape, dtype, reduction, class_scale):
    logits, target = rows(shape, dtype)
    options = {"reduction": reduction, "class_scale": class_scale, "ignore_index": 3}
    assert taken(logits, target, TERMS, 3, reduction, class_scale)
    loss = ak.robust_loss(logits, target, TERMS, **options)
    wanted, _ = ak.robust_loss(logits, target, TERMS, **options, return_aux=("lse",))
    assert torch.equal(loss, wanted)
    made, by_wanted = (torch.autograd.grad(made.sum(), logits)[0] for made in (loss, wanted))
    assert torch.equal(made, by_wanted)
    with torch.no_grad():
        assert torch.equal(ak.robust_loss(logits, target, TERMS, **options), wanted)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(7,), (5, 7), (1, 7), (2, 7, 3)], ids=str)
def test_both_ways_compute_the_same_with_a_running_mean(shape, dtype, reduction):
    terms = 2.0 * ak.NCE() + 3.0 * ak.MAE() + 1.5 * ak.NNCE()
    logits, target = rows(shape, dtype)
    states = []
    results = []
    for aux in (False, ("lse",)):
        state = torch.zeros(3)
        options = {"reduction": reduction, "class_scale": ak.Balance("running", running=state)}
        for _ in range(2):
            made = ak.robust_loss(logits, target, terms, **options, return_aux=aux)
            loss = made[0] if aux else made
            results.append((loss, *torch.autograd.grad(loss.sum(), logits)))
        states.append(state)
    torch.testing.assert_close(results[:2], results[2:])
    torch.testing.assert_close(*states)


@pytest.mark.parametrize(
    "change",
    [
        {"running": None},
        {"running": torch.zeros(3)},
        {"running": torch.zeros(2, dtype=torch.bfloat16)},
        {"running": torch.zeros(4)[::2]},
        {"training": False},
        {"over": "batch"},
    ],
    ids=str,
)
def test_what_running_means_go_the_long_way(change):
    plain = {"over": "running", "running": torch.zeros(2)}
    assert taken(*rows(), class_scale=ak.Balance(**plain))
    assert not taken(*rows(), class_scale=ak.Balance(**plain | change))


@over(KINDS)
def test_what_terms_go_the_short_way(terms):
    assert taken(*rows(), terms)


def test_a_term_alone_goes_it_too():
    assert taken(*rows(), ak.GCE(0.7))


def test_learned_weights_go_the_long_way():
    assert not taken(*rows(), torch.tensor(2.0, requires_grad=True) * ak.NCE())


def test_other_backends_go_the_long_way():
    with ak.use_backend("reference"):
        assert not taken(*rows())


class Subclass(torch.Tensor):
    pass


class Modes:
    class OfFunctions(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    class OfDispatch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [Modes.OfFunctions, Modes.OfDispatch, forward_ad.dual_level])
def test_what_is_watched_goes_the_long_way(mode):
    logits, target = rows()
    with mode():
        assert not taken(logits, target)
    assert taken(logits, target)


@pytest.mark.filterwarnings("ignore")  # of the tracer
def test_transforms_go_the_long_way():
    logits, target = rows()
    ways = []

    def loss(z):
        ways.append(taken(z, target))
        return ak.robust_loss(z, target, TERMS)

    torch.func.grad(loss)(logits.detach())
    torch.jit.trace(loss, logits, check_trace=False)
    assert ways == [False, False]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda z, y: (z.as_subclass(Subclass), y), None),
        (lambda z, y: (z.long(), y), TypeError),
        (lambda z, y: (z, y.short()), TypeError),
        (lambda z, y: (z, y[:-1]), ValueError),
        (lambda z, y: (z[:, :0], y), ValueError),
        (lambda z, y: (z.to("meta"), y), ValueError),
        (lambda z, y: (z.detach().to_sparse(), y), TypeError),
        (lambda z, y: (z.tolist(), y), TypeError),
        (lambda z, y: (z, y.tolist()), TypeError),
    ],
)
def test_other_tensors_go_the_long_way(change, error):
    logits, target = change(*rows())
    assert not taken(logits, target)
    if error:
        with pytest.raises(error):
            ak.robust_loss(logits, target, TERMS)


@pytest.mark.parametrize("keywords", [{"class_scale": True}, {"ignore_index": True}])
def test_equal_keywords_of_other_types_are_other_ones(keywords):
    logits, target = rows()
    assert taken(logits, target, class_scale=1.0, ignore_index=1)
    assert not taken(logits, target, **keywords)


def test_a_bad_reduction_is_no_other_one():
    logits, target = rows()
    with pytest.raises(ValueError, match="reduction must be"):
        ak.robust_loss(logits, target, TERMS, reduction=["mean"])


def test_a_wrong_label_raises():
    logits, target = rows()
    target[2] = 7
    with pytest.raises(IndexError, match=r"target\[2\] is 7"):
        ak.robust_loss(logits, target, TERMS)


def test_terms_are_copied_after_a_call():
    logits, target = rows()
    criterion = ak.ActiveNegativeLoss()
    loss = criterion(logits, target)
    for copied in (copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        assert torch.equal(copied(logits, target), loss)


def test_ever_other_numbers_of_classes():
    terms = 2.0 * ak.NCE()
    for num_classes in [*range(2, 100), 2]:
        logits, target = rows((3, num_classes))
        wanted, _ = ak.robust_loss(logits, target, terms, return_aux=True)
        assert torch.equal(ak.robust_loss(logits, target, terms), wanted)


def test_terms_that_mean_nothing_at_a_number_of_classes():
    logits, target = random_rows(3, 7, torch.float32, torch.device("cpu"))
    with pytest.raises(ValueError, match="min_prob"):
        ak.robust_loss(logits, target, ak.NNCE(min_prob=0.5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_second_backward_through_a_freed_graph(dtype):
    logits, target = rows(dtype=dtype)
    loss = ak.robust_loss(logits, target, TERMS)
    loss.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_that_have_changed_are_found_out(dtype):
    leaf, target = rows(dtype=dtype)
    logits = leaf * 1
    loss = ak.robust_loss(logits, target, TERMS)
    torch.autograd.grad(loss, leaf, retain_graph=True)
    logits.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, leaf)


def test_many_gradients_at_once():
    logits, target = rows()
    loss = ak.robust_loss(logits, target, TERMS)
    upstream = torch.tensor([1.0, -2.0, 0.5])
    (made,) = torch.autograd.grad(loss, logits, upstream, is_grads_batched=True, retain_graph=True)
    (wanted,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(made, upstream[:, None, None] * wanted)


@pytest.mark.filterwarnings("ignore:The .grad attribute")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiled_autograd(dtype):
    logits, target = rows(dtype=dtype)
    (wanted,) = torch.autograd.grad(ak.robust_loss(logits, target, TERMS), logits)
    for _ in range(2):
        loss = 3 * ak.robust_loss(logits * 1, target, TERMS)
        with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
            loss.backward(retain_graph=True)
            loss.backward()
        torch.testing.assert_close(logits.grad, 6 * wanted)
        logits.grad = None


def test_the_functions_keep_their_terms():
    logits, target = rows()
    for loss in (ak.anl, ak.nce, ak.nnce):
        assert torch.equal(loss(logits, target), loss(logits, target))
    alpha = torch.tensor(5.0, requires_grad=True)
    (grad,) = torch.autograd.grad(ak.anl(logits, target, alpha), alpha)
    torch.testing.assert_close(grad, ak.nce(logits, target).detach())


class _Held(ak.MAE):
    """A user's term, which may hold what must not be kept."""

    def __init__(self, what):
        super().__init__()
        object.__setattr__(self, "what", what)


def test_what_a_users_term_holds_is_not_kept():
    held = torch.ones(3)
    seen = weakref.ref(held)
    with ak.use_backend("auto"):
        ak.robust_loss(*rows(), _Held(held))
    del held
    gc.collect()
    assert seen() is None


def test_a_target_that_is_not_what_its_memory_says():
    logits, target = rows()
    for lazy in (torch._neg_view(-target), torch._efficientzerotensor((4,), dtype=torch.int64)):
        assert not taken(logits, lazy)
        expected = ak.robust_loss(logits, lazy.clone(), TERMS)
        assert torch.equal(ak.robust_loss(logits, lazy, TERMS), expected)
