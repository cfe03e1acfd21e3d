"""The keywords that every loss takes, in one place: their types, defaults and checks."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from typing_extensions import TypedDict

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from anl_kernels.sharding.shards import ClassShards

Reduction = Literal["mean", "sum", "none"]
AUX_OUTPUTS = ("term_losses", "lse", "p_y", "argmax", "probs")


class LossOptions(TypedDict, total=False):
    """Keywords of :func:`anl_kernels.robust_loss` and of everything that calls it."""

    weight: Tensor | None
    sample_weight: Tensor | None
    ignore_index: int
    reduction: Reduction
    class_scale: float | Literal["auto"]
    inplace: bool
    process_group: ProcessGroup | ClassShards | None
    num_classes: int | None
    return_aux: bool | Collection[str]


class LinearOptions(TypedDict, total=False):
    """Keywords of :func:`anl_kernels.linear_robust_loss`."""

    weight: Tensor | None
    sample_weight: Tensor | None
    ignore_index: int
    reduction: Reduction
    class_scale: float | Literal["auto"]
    process_group: ProcessGroup | ClassShards | None
    num_classes: int | None
    return_aux: bool | Collection[str]
    logit_softcap: float | None
    chunk_bytes: int | None
    accum_dtype: torch.dtype | None
    skip_ignored: bool | None


def check_reduction(reduction: str) -> None:
    """Raise ValueError unless the reduction is known."""
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")


def check_ignore_index(ignore_index: int) -> None:
    """Raise TypeError unless it is an integer, ValueError unless int64 holds it."""
    if not isinstance(ignore_index, int):
        raise TypeError(f"ignore_index must be an int, got {ignore_index!r}")
    if not -(2**63) <= ignore_index < 2**63:
        raise ValueError(
            f"ignore_index must be in [-2**63, 2**63), the range of int64, got {ignore_index}; "
            f"pass -1 to ignore no label"
        )


def class_scale_at(class_scale: float | str, num_classes: int) -> float:
    """The factor on normalised terms at a number of classes.

    ``"auto"`` is ``K log K / (10 log 10)``: the gradient of NCE at uniform logits is proportional
    to ``1 / (K log K)``, so its weight keeps the effect it has at K = 10 (docs/math.md).
    """
    if class_scale == "auto":
        return max(1, num_classes * math.log(num_classes)) / (10 * math.log(10))
    # Compared, not asked with math.isfinite, which torch.compile(dynamic=True) cannot trace.
    if not isinstance(class_scale, int | float) or not 0 < class_scale < math.inf:
        raise ValueError(f"class_scale must be a positive number or 'auto', got {class_scale!r}")
    return float(class_scale)


def aux_outputs(return_aux: bool | Collection[str]) -> tuple[str, ...]:
    """The auxiliary outputs asked for: True stands for all but the softmax."""
    if isinstance(return_aux, bool):
        return AUX_OUTPUTS[:-1] if return_aux else ()
    if not isinstance(return_aux, Collection):
        raise TypeError(f"return_aux must be a bool or a collection of names, got {return_aux!r}")
    names = (return_aux,) if isinstance(return_aux, str) else tuple(return_aux)
    for name in names:
        if name not in AUX_OUTPUTS:
            raise ValueError(
                f"return_aux must be a bool or some of {', '.join(AUX_OUTPUTS)}, got {name!r}"
            )
    return names
