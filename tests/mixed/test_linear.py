"""The fused head with several labels a row is the loss of its logits."""

import pytest
import torch
import torch.nn.functional as F

import anl_kernels as ak

TERMS = 5.0 * ak.NCE() + 5.0 * ak.NNCE(1e-3) + 1.0 * ak.CE(0.1)
KINDS = ("soft", "two", "smoothed", "two-smoothed")


def problem(kind, dtype=torch.float64):
    hidden = torch.randn(5, 3, 8).to(dtype).requires_grad_()
    weight = torch.randn(9, 8).to(dtype).requires_grad_()
    bias = torch.randn(9).to(dtype).requires_grad_()
    first, second = (torch.randint(7, (5, 3)) for _ in "ab")
    first[0, 0] = second[0, 0] = second[1, 1] = -100
    options = {}
    if kind == "soft":
        first = torch.rand(5, 3, 9).softmax(-1)
    if kind.startswith("two"):
        options = {"target_b": second, "lam": torch.rand(5)}
    if kind.endswith("smoothed"):
        options["weight"] = torch.rand(7).to(dtype)
    return (hidden, weight, bias), first, options


def unfused(inputs, target, **options):
    logits = 20 * torch.tanh(F.linear(*inputs) / 20)
    target = target.movedim(-1, 1) if target.is_floating_point() else target
    return ak.robust_loss(logits.movedim(-1, 1), target, TERMS, num_classes=7, **options)


@pytest.mark.parametrize(
    ("dtype", "chunk_bytes", "reduction"),
    [(torch.float64, None, "none"), (torch.float32, 150, "mean")],
)
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_unfused_loss(kind, reduction, chunk_bytes, dtype, swept, backend):
    inputs, target, options = problem(kind, dtype)
    hidden, weight, bias = inputs
    fused = ak.linear_robust_loss(
        hidden, weight, target, TERMS, bias, reduction=reduction, chunk_bytes=chunk_bytes,
        num_classes=7, logit_softcap=20.0, **options,
    )  # fmt: skip
    wanted = unfused(inputs, target, reduction=reduction, **options)
    close = (
        {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    )
    torch.testing.assert_close(fused, wanted, **close)
    up = torch.rand_like(wanted)
    made, theirs = (torch.autograd.grad(loss, inputs, up) for loss in (fused, wanted))
    torch.testing.assert_close(made, theirs, **close)


@pytest.mark.parametrize("kind", KINDS)
def test_gradgradcheck(kind, swept):
    inputs, target, options = problem(kind)

    def loss(hidden, weight, bias):
        return ak.linear_robust_loss(hidden, weight, target, TERMS, bias, num_classes=7, **options)

    assert torch.autograd.gradgradcheck(loss, inputs, fast_mode=True)


def test_ignored_rows_cost_nothing_and_may_hold_anything(swept):
    (hidden, weight, _), first, options = problem("two")
    poisoned = hidden.detach().clone()
    poisoned[0, 0] = torch.nan
    poisoned.requires_grad_()
    made, wanted = (
        torch.autograd.grad(
            ak.linear_robust_loss(h, weight, first, TERMS, num_classes=7, **options), (h, weight)
        )
        for h in (poisoned, hidden)
    )
    torch.testing.assert_close(made, wanted)


def test_module_and_aux(swept, backend):
    head = torch.nn.Linear(8, 7)
    criterion = ak.LinearRobustLoss(head, TERMS, return_aux=True)
    hidden = torch.randn(6, 8)
    first, second = (torch.randint(7, (6,)) for _ in "ab")
    loss, aux = criterion(hidden, first, target_b=second, lam=0.3)
    wanted, wanted_aux = ak.robust_loss(
        head(hidden), first, TERMS, target_b=second, lam=0.3, return_aux=True
    )
    torch.testing.assert_close(loss, wanted)
    for name in ("term_losses", "lse", "p_y"):
        torch.testing.assert_close(getattr(aux, name), getattr(wanted_aux, name))


def test_aux_of_class_probabilities_is_refused():
    (hidden, weight, _), target, _ = problem("soft")
    with pytest.raises(ValueError, match=r"return_aux.*class indices.*robust_loss"):
        ak.linear_robust_loss(hidden, weight, target, TERMS, return_aux=True)
