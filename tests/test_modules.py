import copy
import inspect
import pickle
import re

import pytest
import torch

import anl_kernels as ak
from anl_kernels.options import LossOptions
from tests.helpers import random_rows

K = 6


def module_cases():
    return {
        "RobustLoss": (lambda **o: ak.RobustLoss(ak.GCE(), **o), ak.GCE()),
        "ActiveNegativeLoss": (
            lambda **o: ak.ActiveNegativeLoss(2.0, 3.0, min_prob=1e-3, **o),
            2.0 * ak.NCE() + 3.0 * ak.NNCE(1e-3),
        ),
        "ActiveNegativeLoss-nfl": (
            lambda **o: ak.ActiveNegativeLoss(2.0, 3.0, active="nfl", gamma=2.0, **o),
            2.0 * ak.NFL(2.0) + 3.0 * ak.NNFL(2.0),
        ),
        "ActivePassiveLoss": (
            lambda **o: ak.ActivePassiveLoss(2.0, 3.0, **o),
            2.0 * ak.NCE() + 3.0 * ak.RCE(),
        ),
        "ActivePassiveLoss-nfl-mae": (
            lambda **o: ak.ActivePassiveLoss(active="nfl", passive="mae", gamma=1.5, **o),
            ak.NFL(1.5) + ak.MAE(),
        ),
        "SymmetricCrossEntropyLoss": (
            lambda **o: ak.SymmetricCrossEntropyLoss(2.0, 3.0, **o),
            2.0 * ak.CE() + 3.0 * ak.RCE(),
        ),
    }


def function_cases():
    return {
        "nce": (ak.nce, ak.NCE()),
        "nnce": (lambda z, y, **o: ak.nnce(z, y, 1e-3, 0.99, **o), ak.NNCE(1e-3, 0.99)),
        "anl": (
            lambda z, y, **o: ak.anl(z, y, 2.0, 3.0, 1e-3, **o),
            2 * ak.NCE() + 3 * ak.NNCE(1e-3),
        ),
    }


OPTIONS = {
    "weight": {"weight": torch.arange(1.0, K + 1)},
    "ignore_index": {"ignore_index": 2},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "class_scale": {"class_scale": 3.0},
    "auto": {"class_scale": "auto"},
    "inplace": {"inplace": True},
    "return_aux": {"return_aux": ("lse", "probs")},
    "all": {
        "weight": torch.arange(1.0, K + 1),
        "ignore_index": 2,
        "reduction": "sum",
        "class_scale": 3.0,
        "inplace": True,
        "return_aux": True,
    },
}


def problem(device):
    logits, target = random_rows(5, K, torch.float32, device)
    target[0] = 2
    return logits, target


def to(device, options):
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}


def same(actual, wanted):
    if isinstance(wanted, tuple):
        return all(map(same, actual, wanted))
    if isinstance(wanted, ak.Aux):
        return all(same(getattr(actual, name), value) for name, value in vars(wanted).items())
    return actual is None if wanted is None else torch.equal(actual, wanted)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
@pytest.mark.parametrize(("make", "terms"), module_cases().values(), ids=list(module_cases()))
def test_modules_are_the_function(make, terms, options, backend, device):
    logits, target = problem(device)
    options = to(device, options)
    sample_weight = torch.rand(5, device=device)
    wanted = ak.robust_loss(logits, target, terms, **options)
    weighted = ak.robust_loss(logits, target, terms, sample_weight=sample_weight, **options)
    module = make(**options)
    assert same(module(logits, target), wanted)
    assert same(module(logits, target, sample_weight), weighted)
    assert same(module(logits, target, sample_weight=sample_weight), weighted)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
@pytest.mark.parametrize(
    ("function", "terms"), function_cases().values(), ids=list(function_cases())
)
def test_functions_are_robust_loss(function, terms, options, backend, device):
    logits, target = problem(device)
    options = to(device, options) | {"sample_weight": torch.rand(5, device=device)}
    wanted = ak.robust_loss(logits, target, terms, **options)
    assert same(function(logits, target, **options), wanted)


def keywords(function):
    parameters = inspect.signature(function).parameters.values()
    return {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}


def test_options_are_the_keywords_of_robust_loss():
    assert keywords(ak.robust_loss) == set(LossOptions.__annotations__)


def test_defaults_are_the_papers():
    assert list(ak.ActiveNegativeLoss().terms) == list(5.0 * ak.NCE() + 5.0 * ak.NNCE(1e-7))
    assert list(ak.ActivePassiveLoss().terms) == list(ak.NCE() + ak.RCE())
    assert list(ak.SymmetricCrossEntropyLoss().terms) == list(0.1 * ak.CE() + ak.RCE())


def test_repr_shows_terms_and_options():
    text = repr(ak.RobustLoss(2.0 * ak.NCE(), ignore_index=255, reduction="sum"))
    assert "2.0 * NCE()" in text
    assert "ignore_index=255" in text
    assert "reduction='sum'" in text


def test_stands_where_cross_entropy_loss_stands(backend, device):
    logits, target = random_rows(5, K, torch.float32, device)
    weight = torch.rand(K, device=device)
    ours = ak.RobustLoss(ak.CE(), weight=weight, ignore_index=1, reduction="sum")
    theirs = torch.nn.CrossEntropyLoss(weight=weight, ignore_index=1, reduction="sum")
    torch.testing.assert_close(ours(logits, target), theirs(logits, target))


def learned_module(dtype=torch.float32):
    alpha = torch.nn.Parameter(torch.tensor(2.0, dtype=dtype))
    return ak.RobustLoss(alpha * ak.NCE() + 3.0 * ak.MAE(), weight=torch.rand(K))


def test_parameters_and_buffers():
    module = learned_module()
    assert [name for name, _ in module.named_parameters()] == ["term_weight_0"]
    assert [name for name, _ in module.named_buffers()] == ["weight"]
    assert set(module.state_dict()) == {"term_weight_0", "weight"}  # as CrossEntropyLoss keeps it


def test_a_parameter_learns(backend, device):
    module = learned_module().to(device)
    logits, target = random_rows(5, K, torch.float32, device)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    before = module(logits, target).item()
    module(logits, target).backward()
    optimizer.step()
    assert module(logits, target).item() < before


def test_a_loaded_parameter_is_used(backend, device):
    module = learned_module().to(device)
    logits, target = random_rows(5, K, torch.float32, device)
    module.load_state_dict({"term_weight_0": torch.tensor(7.0)}, strict=False)
    terms = 7.0 * ak.NCE() + 3.0 * ak.MAE()
    wanted = ak.robust_loss(logits, target, terms, weight=module.weight)
    torch.testing.assert_close(module(logits, target).detach(), wanted)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"]
)
def test_copies_are_whole_and_apart(duplicate, backend, device):
    module = learned_module().to(device)
    logits, target = random_rows(5, K, torch.float32, device)
    wanted = module(logits, target).detach()
    twin = duplicate(module)
    assert torch.equal(twin(logits, target).detach(), wanted)
    with torch.no_grad():
        next(twin.parameters()).fill_(100.0)
    assert torch.equal(module(logits, target).detach(), wanted)
    terms = 100.0 * ak.NCE() + 3.0 * ak.MAE()
    changed = ak.robust_loss(logits, target, terms, weight=module.weight)
    torch.testing.assert_close(twin(logits, target).detach(), changed)


def test_conversion_of_a_module_reaches_its_weights(backend, device):
    module = learned_module().to(device).double()
    logits, target = random_rows(5, K, torch.float64, device)
    assert module.weight.dtype == torch.float64
    module(logits, target).backward()
    (parameter,) = module.parameters()
    assert parameter.dtype == torch.float64
    assert parameter.grad is not None


def test_a_module_of_options_only_copies():
    module = ak.ActiveNegativeLoss(class_scale="auto", return_aux=("lse",))
    assert repr(copy.deepcopy(module)) == repr(module)
    assert module.state_dict() == {}


@pytest.mark.parametrize("name", [n for n in ak.__all__ if not n.startswith("__")])
def test_every_public_name_says_what_it_is(name):
    assert re.search(r"\w+ \w+", inspect.getdoc(getattr(ak, name)) or "")
