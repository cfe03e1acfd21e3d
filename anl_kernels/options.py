"""The keywords that every loss takes, in one place: their types, defaults and checks."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.compiler import is_compiling
from typing_extensions import TypedDict

from anl_kernels.balance import Balance, Over
from anl_kernels.numbers import as_flag, as_int, as_number, shown

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from anl_kernels.distributed.class_shards import ClassShards

Reduction = Literal["mean", "sum", "none"]
_AUTO_IS_OLD = (
    "class_scale='auto' is deprecated: it leaves NCE at 1/23 of cross entropy's gradient, and "
    "makes NNCE's largest grow with the number of classes; pass 'batch' or 'row', which bring both "
    "to the size of cross entropy's (docs/many_classes.md), or the number that it stood for, "
    "max(1, K * log(K)) / (10 * log(10))"
)
ClassScale = float | Over | Literal["auto"] | Balance
BY_NAME = ("probs", "denominators", "entropy", "log_p_y")
"""Auxiliary outputs that ``return_aux=True`` does not stand for."""
AUX_OUTPUTS = ("term_losses", "lse", "p_y", "argmax", *BY_NAME)


class LossOptions(TypedDict, total=False):
    """Keywords of :func:`anl_kernels.robust_loss` and of everything that calls it."""

    weight: Tensor | None
    sample_weight: Tensor | None
    ignore_index: int
    reduction: Reduction
    class_scale: ClassScale
    inplace: bool
    process_group: ProcessGroup | ClassShards | None
    num_classes: int | None
    return_aux: bool | Collection[str]
    target_b: Tensor | None
    lam: float | Tensor | None


class LinearOptions(TypedDict, total=False):
    """Keywords of :func:`anl_kernels.linear_robust_loss`."""

    weight: Tensor | None
    sample_weight: Tensor | None
    ignore_index: int
    reduction: Reduction
    class_scale: ClassScale
    process_group: ProcessGroup | ClassShards | None
    num_classes: int | None
    return_aux: bool | Collection[str]
    target_b: Tensor | None
    lam: float | Tensor | None
    logit_softcap: float | None
    chunk_bytes: int | None
    accum_dtype: torch.dtype | None
    skip_ignored: bool | None


OF_CALLS = ("sample_weight", "target_b", "lam")
"""Keywords that belong to a batch: a module takes them in its call."""


def check_reduction(reduction: Reduction) -> Reduction:
    """The reduction; raise ValueError unless it is known."""
    if not isinstance(reduction, str) or reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {shown(reduction)}")
    return reduction


def check_ignore_index(ignore_index: int) -> int:
    """The label; raise TypeError unless it is an integer, ValueError unless int64 holds it."""
    label = ignore_index if type(ignore_index) is int else as_int(ignore_index)
    if label is None:
        raise TypeError(
            f"ignore_index must be an int, got {shown(ignore_index)}; pass -100 for the default"
        )
    if not -(2**63) <= label < 2**63:
        raise ValueError(
            f"ignore_index must be in [-2**63, 2**63), the range of int64, got {label}; "
            f"pass -1 to ignore no label"
        )
    return label


def check_inplace_flag(inplace: bool) -> bool:
    """The permission; raise TypeError unless it is a truth value."""
    allowed = as_flag(inplace)
    if allowed is None:
        raise TypeError(f"inplace must be True or False, got {shown(inplace)}")
    return allowed


def check_class_scale(class_scale: Any) -> float | Literal["auto"] | Balance:
    """The factor, "auto", or how gradients are balanced; raise ValueError of anything else."""
    if isinstance(class_scale, Balance):
        return class_scale
    if isinstance(class_scale, str) and class_scale in ("row", "batch", "running"):
        return Balance(class_scale)  # type: ignore[arg-type]
    if isinstance(class_scale, str) and class_scale == "auto":
        if not is_compiling():
            warnings.warn(_AUTO_IS_OLD, DeprecationWarning, stacklevel=2)
        return "auto"
    scale = class_scale if type(class_scale) is float else as_number(class_scale)
    # Compared, not asked with math.isfinite, which torch.compile(dynamic=True) cannot trace.
    if scale is None or not 0 < scale < math.inf:
        raise ValueError(
            f"class_scale must be a positive number, 'row', 'batch', 'running', an ak.Balance or "
            f"'auto', got {shown(class_scale)}"
        )
    return float(scale)


def class_scale_at(class_scale: float | Literal["auto"], num_classes: int) -> float:
    """The checked factor on normalised terms at a number of classes.

    ``"auto"`` is ``K log K / (10 log 10)``: the gradient of NCE at uniform logits is proportional
    to ``1 / (K log K)``, so its weight keeps the effect it has at K = 10 (docs/math.md).
    """
    if class_scale == "auto":
        return max(1, num_classes * math.log(num_classes)) / (10 * math.log(10))
    return class_scale


def aux_outputs(return_aux: bool | Collection[str]) -> tuple[str, ...]:
    """The auxiliary outputs asked for: True stands for all but those of ``BY_NAME``."""
    if return_aux is False:
        return ()
    wanted = as_flag(return_aux)
    if wanted is not None:
        return tuple(name for name in AUX_OUTPUTS if name not in BY_NAME) if wanted else ()
    if not isinstance(return_aux, Collection) or isinstance(return_aux, Tensor):
        raise TypeError(
            f"return_aux must be a bool or a collection of names, got {shown(return_aux)}"
        )
    names = (return_aux,) if isinstance(return_aux, str) else tuple(return_aux)
    for name in names:
        if name not in AUX_OUTPUTS:
            raise ValueError(
                f"return_aux must be a bool or some of {', '.join(AUX_OUTPUTS)}, got {name!r}"
            )
    return names


def check_aux_option(return_aux: bool | Collection[str]) -> bool | Collection[str]:
    """What :func:`aux_outputs` takes, as it came; raise as that does."""
    aux_outputs(return_aux)
    return return_aux


def check_class_count(num_classes: int | None) -> int | None:
    """The number of classes, if it is given; raise ValueError unless it is an integer above 0."""
    if num_classes is None:
        return None
    count = as_int(num_classes)
    if count is None or count < 1:
        raise ValueError(
            f"num_classes must be an int of at least 1, or None for the columns that there are, "
            f"got {shown(num_classes)}"
        )
    return count


OPTION_CHECKS: dict[str, Callable[[Any], Any]] = {
    "ignore_index": check_ignore_index,
    "reduction": check_reduction,
    "class_scale": check_class_scale,
    "inplace": check_inplace_flag,
    "num_classes": check_class_count,
    "return_aux": check_aux_option,
}
"""What a module asks of the values of its options, by name; each gives the value to keep.

What depends on tensors, the call says.
"""


def aux_outputs_of_head(return_aux: bool | Collection[str]) -> tuple[str, ...]:
    """The auxiliary outputs asked for; raise ValueError if the softmax is one of them."""
    names = aux_outputs(return_aux)
    if "probs" in names:
        raise ValueError(
            "return_aux cannot hold 'probs' here, which would be as large as the logits; if you "
            "need them, compute the logits and call ak.robust_loss"
        )
    return names


def check_softcap(softcap: float | None) -> float | None:
    """The softcap, None for none; raise ValueError unless it is positive and finite."""
    if softcap is None:
        return None
    bound = as_number(softcap)
    if bound is None or not 0 < bound < 1e30:
        raise ValueError(f"logit_softcap must be a positive number or None, got {shown(softcap)}")
    return float(bound)


def check_temperature(temperature: float) -> float:
    """The temperature; raise ValueError unless it is positive and finite."""
    number = as_number(temperature)
    if number is None or not 0 < number < math.inf:
        raise ValueError(f"temperature must be a positive number, got {shown(temperature)}")
    return float(number)


def check_chunk_bytes(chunk_bytes: int | None) -> int | None:
    """The memory of a chunk, None for the default; raise ValueError unless it is positive."""
    if chunk_bytes is None:
        return None
    memory = as_int(chunk_bytes)
    if memory is None or not 0 < memory < 1 << 62:
        raise ValueError(
            f"chunk_bytes must be a positive number of bytes, an int, or None, got "
            f"{shown(chunk_bytes)}"
        )
    return memory


def check_skip_ignored(skip: bool | None) -> bool | None:
    """The choice, None for the device's; raise ValueError of another value."""
    if skip is None:
        return None
    wanted = as_flag(skip)
    if wanted is None:
        raise ValueError(f"skip_ignored must be True, False or None, got {shown(skip)}")
    return wanted


def _check_aux_option(return_aux: bool | Collection[str]) -> bool | Collection[str]:
    aux_outputs_of_head(return_aux)
    return return_aux


OPTION_CHECKS_OF_HEAD = {
    **OPTION_CHECKS,
    "return_aux": _check_aux_option,
    "logit_softcap": check_softcap,
    "chunk_bytes": check_chunk_bytes,
    "skip_ignored": check_skip_ignored,
}
"""As :data:`OPTION_CHECKS`, for a module with a head."""
