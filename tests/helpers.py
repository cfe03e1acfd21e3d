import torch

import anl_kernels as ak
from anl_kernels.settings import settings
from tests.formulas import evaluate


def backend_in_use():
    """Name of the backend that the test's fixture chose."""
    return settings.backend


def rows(logits):
    """Logits with the classes last."""
    return logits.movedim(1, -1) if logits.dim() > 1 else logits


def leaf(logits):
    return logits.detach().clone(memory_format=torch.preserve_format).requires_grad_()


def loss_and_grad(logits, target, terms, **options):
    """The loss and its gradient, of the sum of the rows' losses where there is one for each."""
    logits = logits.detach().requires_grad_()
    loss = ak.robust_loss(logits, target, terms, **options)
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    return loss.detach(), grad


def expected(logits, target, terms, row_scale=None):
    """Row losses and the gradient of their weighted sum, by the formulas in the logits' dtype."""
    logits = logits.detach().clone().requires_grad_()
    losses = evaluate(terms, rows(logits), target)
    total = losses.sum() if row_scale is None else (losses * row_scale).sum()
    (grad,) = torch.autograd.grad(total, logits)
    return losses.detach(), grad


def error(actual, truth):
    """Norm of the difference relative to the norm of the truth."""
    actual, truth = actual.double(), truth.double()
    return ((actual - truth).norm() / truth.norm().clamp(min=1e-300)).item()


def random_rows(num_rows, num_classes, dtype=torch.float32, device="cpu", scale=3.0):
    """(logits, target) with logits of standard deviation ``scale``."""
    logits = scale * torch.randn(num_rows, num_classes, device=device, dtype=torch.float64)
    target = torch.randint(num_classes, (num_rows,), device=device)
    return logits.to(dtype), target
