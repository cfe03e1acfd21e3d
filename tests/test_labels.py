"""int32 labels mean what int64 labels do, whatever ``ignore_index`` is, at every door."""

import pytest
import torch

import anl_kernels as ak
from anl_kernels import noise, recipes
from anl_kernels.integrations.transformers import loss_function
from anl_kernels.labels import is_ignored

K, D = 5, 3
TERMS = 0.5 * ak.CE() + ak.NNCE(min_prob=1e-3)
LABELS = torch.tensor([0, 1, 2, 3, 4, 0, 2, 1])
# Cast to int32 the first is class 0, the second class 1, the third class 2.
OUTSIDE = [-(2**63), 2**32 + 1, 2 - 2**32, 2**63 - 1, -(2**31) - 1]


def rows(z, y, ignore):
    return ak.robust_loss(z, y, TERMS, ignore_index=ignore)


def weighted_rows(z, y, ignore):
    weights = {"weight": torch.arange(1.0, K + 1).to(z), "sample_weight": torch.ones(len(y)).to(z)}
    return ak.robust_loss(z, y, TERMS, ignore_index=ignore, **weights)


def none_with_aux(z, y, ignore):
    options = {"reduction": "none", "return_aux": ["term_losses", "p_y"]}
    loss, aux = ak.robust_loss(z, y, TERMS, ignore_index=ignore, **options)
    assert aux.p_y.all()
    assert aux.term_losses.all()
    return loss


def pixels(z, y, ignore):
    z = z.view(2, 4, K).movedim(-1, 1).contiguous()
    return ak.robust_loss(z, y.view(2, 4), TERMS, ignore_index=ignore)


def head(z, y, ignore, **options):
    weight = torch.linspace(-1, 2, K * K).view(K, K).to(z)
    return ak.linear_robust_loss(z, weight, y, TERMS, ignore_index=ignore, **options)


def head_in_chunks(z, y, ignore):
    chunk_bytes = 3 * K * z.element_size()
    return head(z, y, ignore, chunk_bytes=chunk_bytes, skip_ignored=True, reduction="none")


def head_of_all_rows(z, y, ignore):
    return head(z, y, ignore, skip_ignored=False)


def log_prob(z, y, ignore):
    return ak.log_prob(z, y, ignore_index=ignore)


def log_probs(z, y, ignore):
    return ak.log_prob(z, torch.stack([y, (y + 1) % K], 1).to(y.dtype), ignore_index=ignore)


def log_prob_loss(z, y, ignore):
    return ak.LogProbLoss(torch.neg, ignore_index=ignore)(z, y)


def entropy(z, y, ignore):
    return ak.EntropyRegularisedLoss(ak.RobustLoss(TERMS, ignore_index=ignore), 2.0)(z, y)


def truncated(z, y, ignore):
    criterion = recipes.TruncatedGCE(len(y), k=1e-3, ignore_index=ignore).to(z)
    index = torch.arange(len(y), device=z.device)
    criterion.refresh(z, y, index)
    assert torch.equal(
        criterion.sample_weight > 0, z.softmax(1).gather(1, y.long()[:, None])[:, 0] > 1e-3
    )
    return criterion(z, y, index)


def negative_learning(z, y, ignore):
    generator = torch.Generator().manual_seed(0)
    options = {"generator": generator, "ignore_index": ignore}
    return recipes.NegativeLearning(K, 3, **options).to(z.device)(z, y)


def shifted(z, y, ignore):
    compute = loss_function(TERMS, shift=True, ignore_index=ignore)
    return compute(z.view(2, 4, K), y.view(2, 4), K)


DOORS = [
    *(rows, weighted_rows, none_with_aux, pixels, head, head_in_chunks, head_of_all_rows),
    *(log_prob, log_probs, log_prob_loss, entropy, truncated, negative_learning, shifted),
]


def of_dtype(door, dtype, logits, ignore):
    z = logits.clone().requires_grad_()
    value = door(z, LABELS.to(logits.device, dtype), ignore)
    (grad,) = torch.autograd.grad(value.sum(), z)
    return value.detach(), grad


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_ignore_index_outside_int32(door, backend, device):
    logits = torch.randn(len(LABELS), K, device=device)
    for ignore in OUTSIDE:
        wanted = of_dtype(door, torch.int64, logits, ignore)
        for ours, value in zip(of_dtype(door, torch.int32, logits, ignore), wanted, strict=True):
            assert torch.equal(ours, value), ignore
        assert wanted[1].any(1).sum() >= len(LABELS) - 2  # a shift leaves the last labels out


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("door", [rows, weighted_rows, head, log_prob, log_prob_loss])
def test_compiled(door, backend, device):
    logits = torch.randn(len(LABELS), K, device=device)
    torch.compiler.reset()
    compiled = torch.compile(door, fullgraph=True, backend="aot_eager")
    for ignore in OUTSIDE[:2]:
        wanted = of_dtype(door, torch.int64, logits, ignore)
        made = of_dtype(compiled, torch.int32, logits, ignore)
        for ours, value in zip(made, wanted, strict=True):
            torch.testing.assert_close(ours, value)


@pytest.mark.parametrize("door", [rows, head, log_prob])
def test_an_ignore_index_outside_int64_is_refused(door, device):
    logits = torch.randn(len(LABELS), K, device=device)
    for ignore in (2**63, -(2**63) - 1):
        with pytest.raises(ValueError, match=rf"ignore_index must be in .* got {ignore}; pass -1"):
            door(logits, LABELS.to(device), ignore)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.bool])
def test_narrower_labels_are_refused(dtype, device):
    logits = torch.randn(len(LABELS), K, device=device)
    for door in (rows, head, log_prob, entropy, shifted):
        with pytest.raises(TypeError, match=r"int64 or int32 class indices.*\.long\(\)"):
            door(logits, LABELS.to(device, dtype), -100)


def test_noise():
    for ignore in OUTSIDE:
        for dtype in (torch.int32, torch.uint8):
            made = noise.symmetric(LABELS.to(dtype), 1.0, K, ignore_index=ignore)
            assert made.changed.all()
            assert made.labels.dtype == dtype


def test_is_ignored():
    target = torch.tensor([0, 1, -(2**31), -100], dtype=torch.int32)
    for ignore in OUTSIDE:
        assert not is_ignored(target, ignore).any()
    for i, label in enumerate(target.tolist()):
        assert is_ignored(target, label).nonzero().tolist() == [[i]]
