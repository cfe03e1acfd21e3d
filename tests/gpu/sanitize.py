"""Runs every form of a backend once on small shapes: what compute-sanitizer is pointed at.

    compute-sanitizer --tool racecheck python -m tests.gpu.sanitize [BACKEND] [DEVICE]

By default the backend "cuda" on "cuda". Numbers are compared loosely with the reference on a CPU:
a kernel that does nothing must not pass. Data is made on the CPU, since every kernel costs the
tools time, PyTorch's too.
"""

import itertools
import sys
import time

import torch

import anl_kernels as ak
from anl_kernels.backends.choice import best, load_backend
from anl_kernels.interface import AUX, RowRequest, accumulator_dtype
from tests.cuda import forms as kernel_forms
from tests.shards import IGNORE, OF_ROWS, run_shards

TERMS = 5.0 * ak.NCE() + 5.0 * ak.NNCE() + 0.5 * ak.NFL() + 0.1 * ak.GCE()
SHAPES = (
    (33, 10),  # short rows
    (5, 1000),
    (3, 1001),  # not aligned to 16 bytes
    (3, 8192),
    (2, 20000),  # from here on rows of several blocks on GPUs with clusters
    (2, 50257),
    (2, 131072),
    (1, 300001),
    (2, 600000),
    (2, 21, 5, 7),  # classes first
    (2, 150, 3, 11),
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
UPSTREAM = 4096.0
"""Scales the gradient after the pass, or keeps float16's, near 1/K, out of its subnormals."""
TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 2e-2, torch.float32: 1e-4, torch.float64: 1e-4}


def one_pass(logits, target):
    """The gradient with the loss, where the dtype allows it."""
    loss = ak.robust_loss(logits, target, TERMS)
    return loss, _gradient(loss, logits)


def in_place(logits, target):
    """The gradient over the logits."""
    computed = logits * 1
    loss = ak.robust_loss(computed, target, TERMS, inplace=True)
    return loss, _gradient(loss, computed)


def recompute(logits, target):
    """The gradient in backward, and all that the forward can give beside it."""
    losses, aux = ak.robust_loss(
        logits, target, TERMS, reduction="none", return_aux=["term_losses", "lse", "p_y", "probs"]
    )
    return losses, _gradient(losses, logits), aux.term_losses, aux.lse, aux.p_y, aux.probs


def softmax(logits, target):
    """Softmax over the classes, and its gradient."""
    probs = ak.softmax(logits, dim=1)
    (grad,) = torch.autograd.grad(probs, logits, logits.detach())
    return probs, grad


def entropy(logits, target):
    """The regulariser over the rows that count, and its gradient added to the loss's."""
    loss = ak.EntropyRegularisedLoss(ak.RobustLoss(TERMS), 1.0)(logits, target)
    return loss, _gradient(loss, logits)


def shards(logits, target):
    """As recompute, out of two shards of the classes; the reference has it from whole rows."""
    name = best(logits.device.type)
    if name == "reference":
        losses, grad, _, lse, p_y, _ = recompute(logits, target)
        return losses, grad, lse, p_y
    request = RowRequest.of(TERMS, IGNORE, *OF_ROWS, *AUX)
    scale = torch.full((), UPSTREAM, dtype=accumulator_dtype(logits.dtype), device=logits.device)
    splits = (0, logits.shape[1] // 3, logits.shape[1])
    outputs, grad, _ = run_shards(
        load_backend(name), logits.detach(), target, request, splits, scale
    )
    losses, lse, p_y = (
        rows.view(target.shape) for rows in (outputs.row_losses, outputs.lse, outputs.p_y)
    )
    return losses, grad, lse, p_y


def _gradient(losses, logits):
    (grad,) = torch.autograd.grad(losses, logits, torch.full_like(losses, UPSTREAM))
    return grad


FORMS = (one_pass, in_place, recompute, softmax, entropy, shards)


def run(form, shape, dtype, backend, device):
    """Run a form; raises AssertionError if its results are not the reference's."""
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(shape, generator=generator)).to(dtype)
    target = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
    target.view(-1)[1:2] = IGNORE
    expected = _on("reference", form, logits.double(), target)
    actual = _on(backend, form, logits.to(device), target.to(device))
    for value, truth in zip(actual, expected, strict=True):
        error = (value.double().cpu() - truth).norm() / truth.norm()
        assert error <= TOLERANCE[dtype], f"{form.__name__} {shape} {dtype}: error {error:.1e}"


def _on(backend, form, logits, target):
    with ak.use_backend(backend):
        return [result.detach() for result in form(logits.requires_grad_(), target)]


def main(backend="cuda", device="cuda"):
    """Run all forms; the exit status."""
    if device == "cuda" and not torch.cuda.is_available():
        print("sanitize: nothing was checked, no GPU is visible to PyTorch")
        return 1
    try:
        with ak.use_backend(backend):
            best(device)
    except (RuntimeError, ValueError) as reason:
        print(f"sanitize: nothing was checked, {reason}")
        return 1
    start, cases = time.monotonic(), list(itertools.product(FORMS, SHAPES, DTYPES))
    for form, shape, dtype in cases:
        run(form, shape, dtype, backend, device)
    forced_cases = list(itertools.product(FORMS, DTYPES)) if backend == "cuda" else []
    for form, dtype in forced_cases:
        for name in kernel_forms.FORMS:
            with kernel_forms.forced(name):
                run(form, (5, 41), dtype, backend, device)
    count = len(cases) + len(forced_cases) * len(kernel_forms.FORMS)
    print(f"sanitize: {count} runs on {backend}, {time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
