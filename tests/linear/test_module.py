import copy
import inspect
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import anl_kernels as ak
from anl_kernels.options import OF_CALLS, LinearOptions
from tests.cases import CASES
from tests.linear.heads import Head, chunks_of, fused_loss, random_head

TERMS = CASES["ANL-CE"]

OPTIONS = {
    "weight": {"weight": torch.arange(1.0, 10)},
    "ignore_index": {"ignore_index": 2},
    "reduction": {"reduction": "sum"},
    "class_scale": {"class_scale": "auto"},
    "num_classes": {"num_classes": 8},
    "return_aux": {"return_aux": ("lse", "p_y")},
    "logit_softcap": {"logit_softcap": 5.0},
    "chunk_bytes": {"chunk_bytes": 100},
    "accum_dtype": {"accum_dtype": torch.float32},
    "skip_ignored": {"skip_ignored": False},
}


@pytest.fixture
def head(device):
    head = random_head(dtype=torch.float32, device=device)
    head.target.clamp_(max=7)
    return head


def linear_of(head, bias=True):
    linear = nn.Linear(6, 9, bias=bias).to(head.hidden.device)
    with torch.no_grad():
        linear.weight.copy_(head.weight)
        if bias:
            linear.bias.copy_(head.bias)
    return linear


def to(device, options):
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}


def same(actual, wanted):
    if isinstance(wanted, tuple):
        return all(map(same, actual, wanted))
    if isinstance(wanted, ak.Aux):
        return all(same(getattr(actual, name), value) for name, value in vars(wanted).items())
    return actual is None if wanted is None else torch.equal(actual, wanted)


def keywords(function):
    parameters = inspect.signature(function).parameters.values()
    return {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}


def test_options_are_the_keywords_of_the_function():
    assert keywords(ak.linear_robust_loss) == set(LinearOptions.__annotations__)


def test_every_option_is_tested_here():
    elsewhere = {*OF_CALLS, "process_group"}
    assert set(LinearOptions.__annotations__) - elsewhere == set(OPTIONS)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_it_is_the_function(options, bias, quick, head, device):
    head = head if bias else head._replace(bias=None)
    options, factors = to(device, options), torch.rand(11, device=device)
    criterion = ak.LinearRobustLoss(linear_of(head, bias), TERMS, **options)
    assert same(criterion(head.hidden, head.target), fused_loss(head, TERMS, **options))
    wanted = fused_loss(head, TERMS, sample_weight=factors, **options)
    assert same(criterion(head.hidden, head.target, factors), wanted)
    assert same(criterion(head.hidden, head.target, sample_weight=factors), wanted)


def test_it_is_the_function_on_triton(triton_backend, head):
    criterion = ak.LinearRobustLoss(linear_of(head), ak.GCE())
    assert same(criterion(head.hidden, head.target), fused_loss(head, ak.GCE()))


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_logits(softcap, backend, head):
    criterion = ak.LinearRobustLoss(linear_of(head), TERMS, logit_softcap=softcap)
    logits = criterion.logits(head.hidden.view(1, 11, 6))
    assert logits.shape == (1, 11, 9)
    losses = ak.robust_loss(logits[0], head.target, TERMS)
    torch.testing.assert_close(losses, criterion(head.hidden, head.target))


def test_padding_is_no_prediction(head):
    criterion = ak.LinearRobustLoss(linear_of(head), TERMS, num_classes=8)
    assert criterion.logits(head.hidden).shape == (11, 8)


def learned(head):
    alpha = nn.Parameter(torch.tensor(2.0, device=head.hidden.device))
    terms = alpha * ak.NCE() + 3.0 * ak.MAE()
    weight = torch.rand(9, device=head.hidden.device)
    return ak.LinearRobustLoss(linear_of(head), terms, weight=weight)


def test_parameters_and_buffers(head):
    criterion = learned(head)
    names = {name for name, _ in criterion.named_parameters()}
    assert names == {"term_weight_0", "head.weight", "head.bias"}
    assert [name for name, _ in criterion.named_buffers()] == ["weight"]
    assert set(criterion.state_dict()) == names | {"weight"}


def test_a_loaded_state_is_used(quick, head):
    criterion, other = learned(head), learned(random_head(dtype=torch.float32))
    other.load_state_dict(criterion.state_dict())
    args = head.hidden, head.target
    other.to(head.hidden.device)
    assert torch.equal(other(*args), criterion(*args))


def test_every_parameter_learns(quick, head):
    criterion = learned(head)
    criterion(head.hidden, head.target).backward()
    assert all(parameter.grad.any() for parameter in criterion.parameters())


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"]
)
def test_copies_are_whole_and_apart(duplicate, quick, head):
    criterion = learned(head)
    args = head.hidden, head.target
    wanted = criterion(*args)
    twin = duplicate(criterion)
    assert torch.equal(twin(*args), wanted)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(criterion(*args), wanted)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_conversion(dtype, quick, head):
    criterion = learned(head).to(dtype)
    criterion(head.hidden.to(dtype), head.target).backward()
    assert criterion.weight.dtype == dtype
    assert all(parameter.grad.dtype == dtype for parameter in criterion.parameters())


def test_repr(head):
    text = repr(ak.LinearRobustLoss(linear_of(head), 2.0 * ak.NCE(), logit_softcap=30.0))
    assert "2.0 * NCE()" in text
    assert "logit_softcap=30.0" in text
    assert "Linear(in_features=6, out_features=9" in text


def test_a_shared_head_is_trained_by_both(quick, head):
    linear = linear_of(head)
    first, second = (ak.LinearRobustLoss(linear, terms) for terms in (ak.NCE(), ak.MAE()))
    (first(head.hidden, head.target) + second(head.hidden, head.target)).backward()
    leaves = head.leaves()
    fused_loss(leaves, ak.NCE() + 1.0 * ak.MAE()).backward()
    torch.testing.assert_close(linear.weight.grad, leaves.weight.grad)


class Model(nn.Module):
    """Predicts a class from the one before, with the weight of the embedding."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, 6)
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.embedding.weight
        self.criterion = ak.LinearRobustLoss(self.head, TERMS)

    def forward(self, inputs, target):
        return self.criterion(torch.tanh(self.embedding(inputs)), target)


def test_a_tied_weight_stays_tied_and_counts_once(quick, device):
    model = Model().to(device)
    assert len(list(model.parameters())) == 1
    inputs, target = torch.randint(9, (2, 12), device=device)
    model(inputs, target).backward()
    weight = model.embedding.weight.detach().clone().requires_grad_()
    parts = Head(torch.tanh(weight[inputs]), weight, None, target)
    (wanted,) = torch.autograd.grad(fused_loss(parts, TERMS), weight)
    torch.testing.assert_close(model.embedding.weight.grad, wanted)


def test_a_parametrised_weight(quick, head):
    linear = parametrize.register_parametrization(linear_of(head), "weight", nn.Tanh())
    criterion = ak.LinearRobustLoss(linear, TERMS)
    loss = criterion(head.hidden, head.target)
    loss.backward()
    wanted = fused_loss(head._replace(weight=torch.tanh(head.weight)), TERMS)
    torch.testing.assert_close(loss.detach(), wanted)
    assert linear.parametrizations.weight.original.grad.any()


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_a_frozen_parameter_gets_no_gradient(frozen, quick, head):
    linear = linear_of(head)
    getattr(linear, frozen).requires_grad_(False)
    criterion = ak.LinearRobustLoss(linear, TERMS, **chunks_of(4, head))
    criterion(head.hidden, head.target).backward()
    with_gradient = {name for name, p in linear.named_parameters() if p.grad is not None}
    assert with_gradient == {"weight", "bias"} - {frozen}


def test_gradients_accumulate_over_micro_batches(quick, head):
    criterion = ak.LinearRobustLoss(linear_of(head), TERMS, reduction="sum")
    for i in range(0, 11, 3):
        criterion(head.hidden[i : i + 3], head.target[i : i + 3]).backward()
    accumulated = criterion.head.weight.grad.clone()
    criterion.zero_grad()
    criterion(head.hidden, head.target).backward()
    torch.testing.assert_close(accumulated, criterion.head.weight.grad)
