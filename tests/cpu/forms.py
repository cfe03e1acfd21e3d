"""The forms that the CPU kernels take, at sizes that cross every border inside them.

A row is cut into pieces of 4096 float32 classes (2048 of float64), a piece into blocks of up to 64;
a tile of rows side by side holds 65536 elements.
"""

from typing import NamedTuple

import numpy as np
import pytest
import torch

import anl_kernels as ak
from anl_kernels.terms import as_terms
from tests.cases import CASES
from tests.helpers import error, rows

AUX = ("term_losses", "lse", "p_y", "argmax", "probs")
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
ROUNDING = {
    torch.float64: 1e-12,
    torch.float32: 2e-6,
    torch.bfloat16: 2**-8,
    torch.float16: 2**-11,
}
# No sum; an affine and a dense one that is a line; a dense one; all of them (its NNCE has not the
# min_prob of tests/cases.py, which so many classes do not allow).
SOME = {name: CASES[name] for name in ("GCE", "ANL-CE", "NFL")}
SOME["all"] = as_terms(
    sum(
        w
        * (
            ak.NNCE()
            if isinstance(term, ak.NNCE)
            else ak.NNFL()
            if isinstance(term, ak.NNFL)
            else term
        )
        for w, term in CASES["all"]
    )
)


def over_some(*names):
    """Parametrise a test's ``terms`` over these of ``SOME``, or all."""
    chosen = [pytest.param(SOME[name], id=name) for name in names or SOME]
    return pytest.mark.parametrize("terms", chosen)


class Form(NamedTuple):
    """Logits that one form serves, if PyTorch has so many threads."""

    shape: tuple[int, ...]
    threads: int = 2
    transposed: bool = False

    @property
    def num_classes(self):
        return self.shape[1]

    @property
    def num_rows(self):
        return torch.Size(self.shape).numel() // self.num_classes

    def logits(self, dtype=torch.float32, scale=3.0):
        if self.transposed:
            z = torch.randn(self.shape[::-1], dtype=torch.float64).t()
        else:
            z = torch.randn(self.shape, dtype=torch.float64)
        return (scale * z).to(dtype)

    def labels(self, *values):
        """The values in turn, or labels by chance."""
        batch = self.shape[:1] + self.shape[2:]
        if not values:
            return torch.randint(self.num_classes, batch)
        repeated = [values[i % len(values)] for i in range(self.num_rows)]
        return torch.tensor(repeated).view(batch)


FORMS = {
    "tile": Form((37, 150)),
    "tile-of-images": Form((3, 150, 19)),
    "tile-in-parts": Form((2, 9001, 3)),
    "tile-transposed": Form((5, 9001), transposed=True),
    "rows": Form((5, 9001)),
    "split": Form((2, 40001), threads=3),
}


class Results(NamedTuple):
    """Everything that a loss gives, on one backend."""

    loss: torch.Tensor
    one_pass: torch.Tensor
    recomputed: torch.Tensor
    aux: object


def results(logits, target, terms, **options):
    """Losses of rows, auxiliary outputs, and the gradient in both ways there are."""
    leaf = logits.detach().requires_grad_()
    total, aux = ak.robust_loss(leaf, target, terms, reduction="sum", return_aux=AUX, **options)
    (one_pass,) = torch.autograd.grad(total, leaf)
    loss = ak.robust_loss(leaf, target, terms, reduction="none", **options)
    (recomputed,) = torch.autograd.grad(loss.sum(), leaf)
    return Results(loss.detach(), one_pass, recomputed, aux)


def reference(logits, target, terms, **options):
    """The same of the reference backend in float64."""
    poisoned = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)  # PyTorch's own are slow
    try:
        with ak.use_backend("reference"):
            return results(logits.detach().double(), target, terms, **options)
    finally:
        torch.use_deterministic_algorithms(poisoned)


def assert_close(ours, wanted, dtype):
    """To the last rounding and what thousands of float32 operations may add."""
    sums = 1e-12 if dtype == torch.float64 else 2e-6
    for name in Results._fields[:3]:
        one, other = getattr(ours, name), getattr(wanted, name)
        most = sums if name == "loss" else sums + ROUNDING[dtype]
        assert error(one, other.to(one.dtype)) <= most, name
    assert torch.equal(ours.aux.argmax, wanted.aux.argmax)
    for name in AUX:
        one, other = getattr(ours.aux, name), getattr(wanted.aux, name)
        most = sums + ROUNDING[dtype] if name == "probs" else sums
        assert error(one, other) <= most, name


def assert_same_bits(ours, others):
    for one, other in zip(ours[:3], others[:3], strict=True):
        assert torch.equal(one.nan_to_num(7), other.nan_to_num(7))
    for name in AUX:
        one, other = getattr(ours.aux, name), getattr(others.aux, name)
        assert torch.equal(one.nan_to_num(7), other.nan_to_num(7)), name


def each_row(logits, target):
    """(row of logits, label) pairs; the rows are views."""
    z = rows(logits)
    for place in np.ndindex(z.shape[:-1]):
        yield z[place], int(target[place])
