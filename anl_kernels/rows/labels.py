"""The check of labels, and the factor of a mean over rows that count: one look at the labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from anl_kernels.backends.choice import CPU
from anl_kernels.backends.operators import eager
from anl_kernels.labels import is_ignored
from anl_kernels.operators import fake, library, operator
from anl_kernels.settings import settings
from anl_kernels.tracing import recorded_for_others


def label_scale(
    target: Tensor,
    num_classes: int | None,
    ignore_index: int,
    dtype: torch.dtype,
    mean: bool = False,
    argument: str = "target",
) -> Tensor:
    """One over the number of labels that are not ignored for a ``mean``, else 1: 0-d.

    Raise IndexError naming the first label that is neither a class nor ``ignore_index``: on a CPU
    always, elsewhere inside :func:`anl_kernels.check_labels`, since it waits for the device. In
    compiled code and transforms of ``torch.func`` an operator raises when they run; what uses the
    factor keeps it there. Exported programs are without it, and so is None for ``num_classes``.
    """
    wanted = target.device.type == "cpu" or settings.check_labels
    if num_classes is None or not wanted or recorded_for_others():
        return _by_formula(target, ignore_index, dtype, mean)
    here: Any = torch.ops.anl_kernels
    if not is_compiling() and CPU in eager:
        here = eager[CPU]
    return here.label_scale(target, num_classes, ignore_index, dtype, mean, argument)


# csrc/cpu/ops.cpp has one for CPUs, with the same words.
@operator(
    "label_scale(Tensor target, SymInt num_classes, int ignore_index, ScalarType dtype, bool mean, "
    "str argument) -> Tensor"
)
def _label_scale(
    target: Tensor,
    num_classes: int,
    ignore_index: int,
    dtype: torch.dtype,
    mean: bool,
    argument: str,
) -> Tensor:
    outside = ((target < 0) | (target >= num_classes)) & ~is_ignored(target, ignore_index)
    if outside.any():
        place = tuple(outside.nonzero()[0].tolist())
        raise IndexError(
            f"{argument}[{', '.join(map(str, place))}] is {target[place].item()}, outside "
            f"[0, {num_classes}) and not ignore_index ({ignore_index}); correct the label or pass "
            f"ignore_index"
        )
    return _by_formula(target, ignore_index, dtype, mean)


def _by_formula(target: Tensor, ignore_index: int, dtype: torch.dtype, mean: bool) -> Tensor:
    if not mean:
        return target.new_ones((), dtype=dtype)
    return (~is_ignored(target, ignore_index)).sum(dtype=dtype).clamp(min=1).reciprocal()


@fake("label_scale")
def _(target: Tensor, num_classes: int, ignore_index: int, dtype: torch.dtype, *_: Any) -> Tensor:
    return target.new_empty((), dtype=dtype)


@torch.library.register_vmap("anl_kernels::label_scale", lib=library)
def _(
    info: Any,
    in_dims: tuple[Any, ...],
    target: Tensor,
    num_classes: int,
    ignore_index: int,
    dtype: torch.dtype,
    mean: bool,
    argument: str,
) -> tuple[Tensor, int]:
    samples = target.movedim(in_dims[0], 0)
    one = torch.ops.anl_kernels.label_scale(
        samples, num_classes, ignore_index, dtype, False, argument
    )
    if not mean:
        return one.expand(len(samples)), 0
    valid = (~is_ignored(samples, ignore_index)).reshape(len(samples), -1).sum(1, dtype=dtype)
    return one / valid.clamp(min=1), 0
