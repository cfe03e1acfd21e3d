"""The operands of a projection: checked, on one device, of one dtype, those of this rank."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from anl_kernels import checks
from anl_kernels.distributed.class_shards import ClassShards
from anl_kernels.distributed.local_parts import local_parameter, of_rows, whole_rows
from anl_kernels.distributed.row_shards import RowShards
from anl_kernels.interface import accumulator_dtype
from anl_kernels.options import check_skip_ignored

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

OF_IGNORED_ROWS = ("lse", "argmax")
"""Auxiliary outputs that ignored rows have too."""


class Operands(NamedTuple):
    """What the projection of this rank is given."""

    hidden: Tensor
    """(..., D)."""
    weight: Tensor
    """(K or more, D)."""
    bias: Tensor | None
    target: Tensor
    """(...)."""
    shards: ClassShards | None
    rows: RowShards | None
    num_classes: int
    """Of all ranks."""
    num_here: int
    """Of the weight's rows; the rest is padding."""
    dtype: torch.dtype
    """Of the products."""


def local_operands(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    process_group: ProcessGroup | ClassShards | None,
    num_classes: int | None,
) -> Operands:
    """Check the tensors, and take of DTensors what is here."""
    made = local_projection(hidden, weight, bias, process_group, num_classes)
    target = of_rows("target", target, made.rows)
    checks.check_labels_of(target, made.hidden.shape[:-1], "hidden", made.hidden)
    return made._replace(target=target)


def local_projection(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    process_group: ProcessGroup | ClassShards | None,
    num_classes: int | None,
) -> Operands:
    """As :func:`local_operands`, without labels yet: its target has none."""
    checks.check_dtype("hidden", hidden)
    checks.check_dtype("linear_weight", weight)
    hidden, rows = whole_rows("hidden", hidden, hidden.dim() - 1)
    weight, shards = local_parameter("linear_weight", weight, process_group, rows)
    if bias is not None:
        checks.check_dtype("linear_bias", bias)
        bias, _ = local_parameter("linear_bias", bias, None, rows)
    _check_shapes(hidden, weight, bias)
    available = weight.shape[0] if shards is None else shards.num_classes
    num_classes = checks.check_num_classes(num_classes, available, "linear_weight", weight)
    if shards is not None:
        shards = shards.without_padding(num_classes)
    num_here = num_classes if shards is None else shards.num_here
    dtype = _dtype_of_products(hidden, weight, bias)
    none = torch.empty(0, dtype=torch.int64, device="meta")
    return Operands(hidden, weight, bias, none, shards, rows, num_classes, num_here, dtype)


def sum_dtype_of(accum_dtype: torch.dtype | None, dtype: torch.dtype) -> torch.dtype:
    """In which dtype gradients of parameters of a dtype are summed."""
    wide = accumulator_dtype(dtype)
    if accum_dtype not in (None, wide, dtype):
        allowed = f"None or {wide}" if dtype == wide else f"None, {wide} or {dtype}, the weight's"
        raise ValueError(f"accum_dtype must be {allowed}, got {accum_dtype!r}")
    return wide if accum_dtype is None else accum_dtype


def skips_ignored(skip: bool | None, device_type: str, aux: tuple[str, ...]) -> bool:
    """Whether ignored rows are left out; auxiliary outputs may ask for them."""
    skip = check_skip_ignored(skip)
    asked = [name for name in aux if name in OF_IGNORED_ROWS]
    if skip and asked:
        raise ValueError(
            f"skip_ignored=True leaves ignored rows without {' and '.join(asked)}; ask for others "
            f"in return_aux, or pass skip_ignored=False"
        )
    return (device_type == "cpu" and not asked) if skip is None else skip


def _check_shapes(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if weight.dim() != 2:
        hint = (
            " of ZeRO-3, which gathers it in the forward of its engine only"
            if hasattr(weight, "ds_id")
            else ""
        )
        raise ValueError(f"linear_weight must have shape (K, D), got {_shape(weight)}{hint}")
    if hidden.dim() == 0 or hidden.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"hidden must have shape (..., D) with D = {weight.shape[1]}, as linear_weight of "
            f"{_shape(weight)} has, got {_shape(hidden)}"
        )
    checks.check_device("linear_weight", weight, hidden)
    if bias is not None:
        if bias.shape != weight.shape[:1]:
            raise ValueError(
                f"linear_bias must have shape ({weight.shape[0]},), one number for each row of "
                f"linear_weight, got {_shape(bias)}"
            )
        checks.check_device("linear_bias", bias, hidden)


def _dtype_of_products(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> torch.dtype:
    tensors = {"linear_weight": weight} | ({} if bias is None else {"linear_bias": bias})
    kind = hidden.device.type
    autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    if autocast and torch.float64 not in (hidden.dtype, weight.dtype):
        return torch.get_autocast_dtype(kind)
    for name, tensor in tensors.items():
        if tensor.dtype != hidden.dtype:
            hint = "autocast leaves float64 alone" if autocast else "or use torch.autocast"
            raise TypeError(
                f"{name} must have the dtype of hidden, {hidden.dtype}, got {tensor.dtype}; "
                f"convert one of them ({hint})"
            )
    return hidden.dtype


def _shape(tensor: Tensor) -> str:
    return f"shape {tuple(tensor.shape)}"
