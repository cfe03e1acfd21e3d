"""What balanced losses are, by the independent formulas: a plain value, gradients times factors."""

import torch

import anl_kernels as ak
from tests.cases import CASES, TERMS
from tests.formulas import FORMULAS, _Row, denominators
from tests.helpers import rows

IGNORE = -100
MODES = ("row", "batch", "running")
NORMALISED = [name for name, term in TERMS.items() if term.normalised]
MIXED = 0.7 * ak.NCE() + ak.GCE(0.5) + 0.4 * ak.NNFL(detach_weight=False) - 0.1 * ak.ZLoss()
# One of each kind of sum, and terms of all kinds together.
SOME = {name: CASES[name] for name in ("NCE", "NNCE-clamped", "ANL-CE", "ANL-FL", "NGCE-clamped")}
SOME["mixed"] = MIXED


def problem(shape, dtype=torch.float64, device="cpu", ignored=True):
    """Logits with the classes in dimension 1, and labels, of which one is ignored."""
    logits = (2 * torch.randn(shape, dtype=torch.float64, device=device)).to(dtype)
    num_classes = shape[1] if len(shape) > 1 else shape[0]
    batch = shape[:1] + shape[2:] if len(shape) > 1 else ()
    target = torch.randint(num_classes, batch, device=device)
    if ignored and target.numel() > 1:
        target.view(-1)[1] = IGNORE
    return logits, target


def sums_of(logits, target, terms):
    """Denominators in float64, (T, ...), 0 of rows that are ignored."""
    made = denominators(terms, rows(logits.double()), target.clamp(min=0))
    return made.masked_fill(target == IGNORE, 0)


def factors_of(logits, target, terms, mode, running=None):
    """The factor of each term on gradients, (T, ...) or broadcast to it, 1 of plain terms."""
    sums = sums_of(logits, target, terms)
    column = (-1, *[1] * target.dim())
    if mode == "batch":
        number = (target != IGNORE).sum()
        sums = (sums.reshape(len(terms), -1).sum(1) / number).view(column)
    if mode == "running":
        sums = (running.double() * logits.shape[min(1, logits.dim() - 1)]).view(column)
    normalised = torch.tensor([t.normalised for t in terms.terms], device=logits.device)
    return torch.where(normalised.view(column), sums, 1.0)


def losses_of_terms(logits, target, terms):
    """(T, ...), without weights, differentiable."""
    row = _Row(rows(logits), target.clamp(min=0))
    losses = torch.stack([FORMULAS[type(t).__name__](t, row) for t in terms.terms])
    return losses.masked_fill(target == IGNORE, 0)


def weights_of(terms, like):
    return torch.tensor(terms.factors, dtype=like.dtype, device=like.device)


def balanced_by_formula(logits, target, terms, mode, row_scale=1.0, running=None):
    """(row losses, gradient of their sum): both of rows times ``row_scale``, in float64."""
    factors = factors_of(logits, target, terms, mode, running)
    leaf = logits.detach().double().requires_grad_()
    losses = losses_of_terms(leaf, target, terms)
    weights = weights_of(terms, leaf).view(-1, *[1] * target.dim())
    value = (weights * losses).sum(0) * row_scale
    ((weights * factors * losses).sum(0) * row_scale).sum().backward()
    return value.detach(), leaf.grad


def uniform(terms, num_classes):
    """What a running mean starts at."""
    logits, target = torch.zeros(1, num_classes).double(), torch.zeros(1, dtype=torch.int64)
    return denominators(terms, logits, target).squeeze(1) / num_classes


def balance_of(mode, terms, num_classes, device="cpu", **options):
    """The keyword, for functions too; a running mean that was moved before."""
    if mode != "running":
        return ak.Balance(mode, **options)
    state = uniform(terms, num_classes) * torch.linspace(0.5, 1.5, len(terms))
    return ak.Balance(mode, running=state.to(device), **options)
