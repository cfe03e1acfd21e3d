"""Under the transforms of ``torch.func`` all logits are computed at once."""

import pytest
import torch
from torch.func import functional_call, grad, grad_and_value, jacrev, vjp, vmap

import anl_kernels as ak
from tests.cases import CASES
from tests.linear.heads import assert_like, fused, fused_loss, random_head

# vmap runs an operator without a batching rule once for each sample, and says so.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")

TERMS = CASES["ANL-CE"]


@pytest.fixture
def head(device):
    return random_head((4,), 3, 5, device=device).with_ignored(2)


def loss_of(head, **options):
    def loss(hidden, weight, bias):
        parts = head._replace(hidden=hidden, weight=weight, bias=bias)
        return fused_loss(parts, TERMS, **options)

    return loss


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_grad(softcap, backend, head):
    options = {"logit_softcap": softcap}
    grads, value = grad_and_value(loss_of(head, **options), (0, 1, 2))(*head.parameters)
    assert_like([value, *grads], fused(head, TERMS, **options))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_vjp(reduction, quick, head):
    value, pullback = vjp(loss_of(head, reduction=reduction), *head.parameters)
    upstream = torch.randn_like(value)
    wanted = fused(head, TERMS, reduction=reduction, upstream=upstream)
    assert_like([value, *pullback(upstream)], wanted)


def test_jacrev(quick, head):
    jacobian = jacrev(loss_of(head, reduction="none"), 1)(*head.parameters)
    for i, by_weight in enumerate(jacobian):
        upstream = torch.zeros(4, dtype=torch.float64, device=by_weight.device)
        upstream[i] = 1
        wanted = fused(head, TERMS, reduction="none", upstream=upstream)[2]
        assert_like([by_weight], [wanted])


def test_jacrev_of_jacrev(quick, head):
    one = head._replace(hidden=head.hidden[0], target=head.target[0])
    ours = jacrev(jacrev(lambda h: fused_loss(one._replace(hidden=h), TERMS)))(one.hidden)
    with ak.use_backend("reference"):
        wanted = torch.autograd.functional.hessian(
            lambda h: fused_loss(one._replace(hidden=h), TERMS), one.hidden
        )
    assert_like([ours], [wanted], 1e-10)


def test_vmap_of_grad_gives_gradients_of_each_sample(quick, head):
    def loss(hidden, target):
        return fused_loss(head._replace(hidden=hidden, target=target), TERMS)

    ours = vmap(grad(loss))(head.hidden, head.target)
    assert_like([ours], [fused(head, TERMS, reduction="none")[1]])


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_vmap_over_weights(reduction, quick, head):
    weights = torch.stack([head.weight, 2 * head.weight, -head.weight])
    losses = vmap(lambda w: fused_loss(head._replace(weight=w), TERMS, reduction=reduction))
    wanted = [fused_loss(head._replace(weight=w), TERMS, reduction=reduction) for w in weights]
    assert_like([losses(weights)], [torch.stack(wanted)])


def test_vmap_over_batches(quick, head):
    hidden, target = torch.stack([head.hidden, head.hidden.flip(0)]), head.target.expand(2, -1)
    losses = vmap(lambda h, y: fused_loss(head._replace(hidden=h, target=y), TERMS))
    wanted = [fused_loss(head._replace(hidden=h), TERMS) for h in hidden]
    assert_like([losses(hidden, target)], [torch.stack(wanted)])


@pytest.mark.parametrize("wanted", ["lse", ("p_y", "term_losses", "argmax")])
def test_aux(wanted, quick, head):
    made = {}

    def loss(hidden):
        value, aux = fused_loss(head._replace(hidden=hidden), TERMS, return_aux=wanted)
        return value, {name: tensor for name, tensor in vars(aux).items() if tensor is not None}

    _, made = grad(loss, has_aux=True)(head.hidden)
    _, aux = fused_loss(head, TERMS, return_aux=wanted)
    assert_like(made.values(), [getattr(aux, name) for name in made])


def test_functional_call(quick, head, device):
    alpha = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64, device=device))
    linear = torch.nn.Linear(3, 5).to(device, torch.float64)
    criterion = ak.LinearRobustLoss(linear, alpha * ak.NCE() + ak.MAE())
    given = {"head.weight": head.weight, "head.bias": head.bias, "term_weight_0": alpha.detach()}

    def loss(parameters):
        return functional_call(criterion, parameters, (head.hidden, head.target))

    grads = grad(loss)(given)
    _, _, by_weight, by_bias = fused(head, 2.0 * ak.NCE() + ak.MAE())
    wanted = [by_weight, by_bias, fused_loss(head, ak.NCE())]
    assert_like(list(grads.values()), wanted)
