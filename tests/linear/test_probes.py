"""The entropy of rows and log p_y beside the loss of a head, without logits."""

import shutil

import pytest
import torch
import torch.nn.functional as F

import anl_kernels as ak
from tests.cases import KINDS, over
from tests.linear.heads import chunks_of, random_head
from tests.test_probes import BOTH, by_formula

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def with_aux(head, terms, aux, **options):
    head = head.leaves()
    hidden, weight, bias, target = head
    loss, made = ak.linear_robust_loss(
        hidden, weight, target, terms, bias, return_aux=aux, **options
    )
    return loss.detach(), made, torch.autograd.grad(loss.sum(), head.parameters)


def assert_found(aux, head, tolerance):
    hidden, weight, bias, target = head
    logits = F.linear(hidden, weight, bias)
    logits = logits.reshape(-1, logits.shape[-1])
    for found, wanted in zip(
        (aux.entropy, aux.log_p_y), by_formula(logits, target.flatten()), strict=True
    ):
        assert found.shape == target.shape
        torch.testing.assert_close(
            found.double(), wanted.view(target.shape), rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", [{}, {"reduction": "none"}, {"skip_ignored": False}], ids=str)
@over(KINDS)
def test_values_and_an_unmoved_gradient(terms, options, dtype, quick, device):
    head = random_head((3, 5), classes=40, dtype=dtype, device=device).with_ignored(1, 2, 7)
    options = options | chunks_of(4, head)
    loss, aux, grads = with_aux(head, terms, BOTH, **options)
    assert_found(aux, head, 1e-11 if dtype == torch.float64 else 1e-5)
    plain, _, plain_grads = with_aux(head, terms, ("p_y",), **options)
    torch.testing.assert_close(loss, plain)
    for grad, wanted in zip(grads, plain_grads, strict=True):
        torch.testing.assert_close(grad, wanted)


def test_kernels(backend, device):
    head = random_head((6,), classes=40, dtype=torch.float32, device=device).with_ignored(3)
    _, aux, _ = with_aux(head, ak.GCE() + ak.NCE(), BOTH, **chunks_of(4, head))
    assert_found(aux, head, 1e-5)


def test_a_module(device):
    head = random_head((6,), classes=40, bias=False, device=device)
    linear = torch.nn.Linear(6, 40, bias=False, dtype=torch.float64, device=device)
    linear.weight.data.copy_(head.weight)
    criterion = ak.LinearRobustLoss(linear, ak.GCE(), return_aux=("entropy", "log_p_y"))
    _, aux = criterion(head.hidden, head.target)
    assert_found(aux, head, 1e-11)


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compiled(compiler, device):
    if compiler == "inductor" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("needs a C++ compiler")
    torch.compiler.reset()
    head = random_head((6,), classes=40, dtype=torch.float32, device=device).with_ignored(3)

    @torch.compile(fullgraph=True, backend=compiler)
    def step(hidden, weight, bias, target):
        loss, aux = ak.linear_robust_loss(
            hidden, weight, target, ak.GCE(), bias, return_aux=BOTH, chunk_bytes=300
        )
        _, of_logits = ak.robust_loss(
            F.linear(hidden, weight, bias), target, ak.GCE(), return_aux=BOTH
        )
        return loss, aux, of_logits

    leaves = head.leaves()
    loss, aux, of_logits = step(*leaves)
    assert_found(aux, head, 1e-5)
    assert_found(of_logits, head, 1e-5)
    grads = torch.autograd.grad(loss, leaves.parameters)
    for grad, wanted in zip(grads, with_aux(head, ak.GCE(), BOTH)[2], strict=True):
        torch.testing.assert_close(grad, wanted)
    torch.compiler.reset()


@pytest.mark.parametrize("over_what", ["row", "batch"])
def test_balanced_losses(over_what, quick, device):
    head = random_head((6,), classes=40, device=device).with_ignored(3)
    terms = ak.NCE() + ak.MAE()
    loss, aux, grads = with_aux(head, terms, BOTH, class_scale=over_what)
    assert_found(aux, head, 1e-11)
    plain, _, wanted = with_aux(head, terms, ("p_y",), class_scale=over_what)
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(grads, wanted)


def test_two_labels(device):
    head = random_head((6,), classes=40, device=device)
    second = head.target.roll(1)
    hidden, weight, bias, target = head
    _, aux = ak.linear_robust_loss(
        hidden, weight, target, ak.GCE(), bias, target_b=second, lam=0.25, return_aux=BOTH
    )
    logits = F.linear(hidden, weight, bias)
    (entropy, one), (_, other) = by_formula(logits, target), by_formula(logits, second)
    torch.testing.assert_close(aux.entropy, entropy)
    torch.testing.assert_close(aux.log_p_y, 0.25 * one + 0.75 * other)
