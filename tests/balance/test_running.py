"""The running mean: where it starts, when it moves, and whose it is."""

import copy
import pickle

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import anl_kernels as ak
from anl_kernels.terms import as_terms
from tests.balance.definitions import IGNORE, MIXED, NORMALISED, problem, sums_of, uniform
from tests.cases import TERMS
from tests.helpers import error, loss_and_grad

ANL = 1.0 * ak.NCE() + 1.0 * ak.NNCE()


def mean_summands(logits, target, terms):
    sums = sums_of(logits, target, terms).reshape(len(terms), -1)
    return sums.sum(1) / (target != IGNORE).sum() / logits.shape[1]


def train(module, logits, target):
    leaf = logits.detach().clone().requires_grad_()
    module(leaf, target).backward()
    return leaf.grad


@pytest.mark.parametrize("num_classes", [10, 50000])
@pytest.mark.parametrize("name", NORMALISED)
def test_the_start(name, num_classes, device):
    """The factor of the first call is that of uniform logits."""
    terms = as_terms(TERMS[name])
    if getattr(TERMS[name], "min_prob", 0) * num_classes >= 1:
        pytest.skip("no meaning at so many classes")
    logits, target = problem((2, num_classes), device=device)
    module = ak.RobustLoss(terms, class_scale="running").to(device).double().eval()
    scale = float(uniform(terms, num_classes) * num_classes)
    _, wanted = loss_and_grad(logits, target, scale * terms)
    assert error(train(module, logits, target), wanted) <= 1e-11
    assert not module.running_summands.any()
    if name == "NCE":
        log_classes = torch.tensor(float(num_classes)).log()
        assert scale == pytest.approx(num_classes * log_classes.item(), rel=1e-6)


@pytest.mark.parametrize("momentum", [0.1, 0.5, 1.0])
def test_how_it_moves(momentum, backend, device):
    """After a call, from the uniform value on, by the mean of the rows that count."""
    module = ak.RobustLoss(MIXED, class_scale=ak.Balance("running", momentum)).to(device).double()
    state = uniform(MIXED, 6).to(device)
    for shape in [(5, 6), (2, 6, 4), (3, 6)]:
        logits, target = problem(shape, device=device)
        train(module, logits, target)
        state = state + momentum * (mean_summands(logits, target, MIXED) - state)
        torch.testing.assert_close(module.running_summands, state)


def test_when_it_stays(backend, device):
    module = ak.RobustLoss(ANL, class_scale="running").to(device)
    logits, target = problem((5, 6), torch.float32, device)
    train(module, logits, target)
    before = module.running_summands.clone()
    train(module, logits, torch.full_like(target, IGNORE))
    train(module, logits[:0], target[:0])
    with torch.no_grad():
        module(logits, target)
    with torch.inference_mode():
        module(logits, target)
    module.eval()
    train(module, logits, target)
    assert torch.equal(module.running_summands, before)
    assert not module.running_summands.is_inference()
    module.train()
    train(module, logits, target)
    assert not torch.equal(module.running_summands, before)


def test_rows_that_are_nan_or_have_an_absent_label_do_not_move_it(backend, device):
    logits, target = problem((5, 6), device=device, ignored=False)
    good = [0, 2, 4]
    logits[1, 3] = torch.nan
    logits[3, target[3]] = -torch.inf
    modules = [ak.RobustLoss(ak.NCE(), class_scale="running").to(device) for _ in range(2)]
    train(modules[0], logits, target)
    train(modules[1], logits[good], target[good])
    torch.testing.assert_close(modules[0].running_summands, modules[1].running_summands)
    before = modules[0].running_summands.clone()
    train(modules[0], torch.full_like(logits, torch.nan), target)
    assert torch.equal(modules[0].running_summands, before)


def test_in_memory_and_on_disk(device):
    module = ak.RobustLoss(ANL, class_scale="running").to(device)
    logits, target = problem((5, 6), torch.float32, device)
    train(module, logits, target)
    assert list(module.state_dict()) == ["running_summands"]
    assert not list(module.parameters())
    loaded = ak.RobustLoss(ANL, class_scale="running").to(device)
    loaded.load_state_dict(module.state_dict())
    others = [loaded, copy.deepcopy(module), pickle.loads(pickle.dumps(module))]
    wanted = train(module, logits, target)
    for other in others:
        assert torch.equal(train(other, logits, target), wanted)
        assert torch.equal(other.running_summands, module.running_summands)
    train(module, logits, target)
    assert not torch.equal(others[1].running_summands, module.running_summands)


def test_two_modules_share_nothing(device):
    balance = ak.Balance("running")
    first, second = (ak.RobustLoss(ANL, class_scale=balance).to(device) for _ in range(2))
    train(first, *problem((5, 6), device=device))
    assert first.running_summands.any()
    assert not second.running_summands.any()
    assert balance.running is None


def test_a_state_that_is_given_is_moved_where_it_is(backend, device):
    state = torch.zeros(2, device=device)
    logits, target = problem((5, 6), torch.float32, device)
    leaf = logits.clone().requires_grad_()
    balance = ak.Balance("running", running=state)
    ak.robust_loss(leaf, target, ANL, class_scale=balance).backward()
    module = ak.RobustLoss(ANL, class_scale="running").to(device)
    assert torch.equal(train(module, logits, target), leaf.grad)
    assert torch.equal(module.running_summands, state)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes_of_the_state(dtype, backend, device):
    """As the buffers of a model are cast with it."""
    module = ak.RobustLoss(MIXED, class_scale="running").to(device).to(dtype)
    logits, target = problem((5, 6), dtype, device)
    wanted = ak.RobustLoss(MIXED, class_scale="running").to(device).double()
    for _ in range(3):
        made, exact = train(module, logits, target), train(wanted, logits.double(), target)
        assert module.running_summands.dtype == dtype
        slack = 1e-12 if dtype == torch.float64 else 3 * torch.finfo(dtype).eps
        assert error(made, exact) <= slack
        assert error(module.running_summands, wanted.running_summands) <= slack


def test_many_classes_in_half_precision(device):
    """Means of summands, not sums, fit into float16."""
    module = ak.RobustLoss(ANL, class_scale="running").to(device).half()
    logits, target = problem((2, 128256), torch.float16, device)
    for _ in range(2):
        assert train(module, logits, target).isfinite().all()
        assert module.running_summands.isfinite().all()


def test_checkpointed(device):
    """A second forward pass, as of what is recomputed, leaves the gradient as it was."""
    logits, target = problem((5, 6), torch.float32, device)
    wanted = train(ak.RobustLoss(ANL, class_scale="running").to(device), logits, target)
    for reentrant in (False, True):
        module = ak.RobustLoss(ANL, class_scale="running").to(device)
        leaf = logits.clone().requires_grad_()
        checkpoint(module, leaf, target, use_reentrant=reentrant).backward()
        torch.testing.assert_close(leaf.grad, wanted)
        assert module.running_summands.any()


def test_formulas_are_not_checkpointed(device):
    """They would be computed again with the mean that the first time has moved."""
    logits, target = problem((3, 7), device=device)
    module = ak.RobustLoss(ANL, class_scale="running").to(device)
    leaf = logits.float().requires_grad_()
    with ak.use_backend("reference"):
        with pytest.raises(RuntimeError, match=r"'running'.*use_reentrant.*'batch'"):
            checkpoint(module, leaf, target, use_reentrant=False)
        assert checkpoint(module.eval(), leaf, target, use_reentrant=False).isfinite()


@pytest.mark.parametrize("scale", [1.0, ak.Balance("batch"), None])
def test_an_option_that_is_changed_later(scale, device):
    logits, target = problem((3, 7), device=device)
    module = ak.RobustLoss(ANL, class_scale="running").to(device)
    if scale is None:
        del module.options["class_scale"]
    else:
        module.options["class_scale"] = scale
    assert torch.allclose(module(logits, target), ak.robust_loss(logits, target, ANL))


def test_only_running_keeps_something(device):
    for scale in (1.0, "auto", "row", "batch", ak.Balance("batch")):
        assert not ak.RobustLoss(ANL, class_scale=scale).state_dict()
        assert ak.RobustLoss(ANL, class_scale=scale).running_summands is None


def test_without_values(device):
    """Fake tensors, and a device without memory."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    for scale in ("row", "batch", "running"):
        with FakeTensorMode():
            logits, target = torch.randn(3, 6, requires_grad=True), torch.zeros(3).long()
            ak.RobustLoss(MIXED, class_scale=scale)(logits, target).backward()
            assert logits.grad.shape == logits.shape
        module = ak.RobustLoss(MIXED, class_scale=scale).to("meta")
        logits = torch.empty(3, 6, device="meta", requires_grad=True)
        module(logits, torch.empty(3, device="meta", dtype=torch.int64)).backward()
        assert logits.grad.shape == logits.shape
    module = ak.RobustLoss(MIXED, class_scale="running").to(device)
    logits, target = problem((3, 6), torch.float32, device)
    with torch.device("meta"):
        assert train(module, logits, target).isfinite().all()
