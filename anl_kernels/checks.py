"""Argument checks: every error names the argument, the value received and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.masked import MaskedTensor
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from anl_kernels.layout import one_stride
from anl_kernels.numbers import as_int, shown
from anl_kernels.settings import settings
from anl_kernels.tracing import PLAIN
from anl_kernels.versions import why_unchecked

FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""The dtypes that are computed with."""


@contextmanager
def check_labels() -> Iterator[None]:
    """Check every label in this context, on GPUs too, where it costs a synchronisation.

    Outside, a label out of range on a GPU makes its row's loss and gradient NaN; on a CPU it
    always raises IndexError. Compiled code and transforms of ``torch.func`` raise where other code
    does, when they run; an exported program does not. The setting is a context variable, as
    :func:`use_backend`'s is; ``ANL_KERNELS_CHECK_LABELS=1`` in the environment does the same for a
    whole process.
    """
    previous = settings.check_labels
    settings.check_labels = True
    try:
        yield
    finally:
        settings.check_labels = previous


def check_floating_logits(logits: Tensor) -> None:
    """Raise TypeError or ValueError unless logits are floating and not 0-d."""
    check_dtype("logits", logits)
    if not logits.dim():
        raise ValueError("logits must have shape (K,), (N, K) or (N, K, d1, ...), got shape ()")


def check_num_classes(num_classes: int | None, available: int, name: str, tensor: Tensor) -> int:
    """The number of classes, of those available in a tensor; raise ValueError if it cannot be."""
    if not available:
        raise ValueError(
            f"{name} must have at least one class, got no classes in shape {tuple(tensor.shape)}; "
            f"give the layer that makes them as many outputs as there are classes"
        )
    if num_classes is None:
        return available
    count = as_int(num_classes)
    if count is None or not 1 <= count <= available:
        raise ValueError(
            f"num_classes must be an int in [1, {available}], the number of columns that there "
            f"are, got {shown(num_classes)}; the columns from num_classes on are padding"
        )
    return count


def check_dim(dim: int, logits: Tensor) -> int:
    """The dimension, at least 0; raise TypeError of no integer, IndexError if there is none."""
    place, dims = as_int(dim), logits.dim()
    if place is None:
        raise TypeError(f"dim must be an int, got {shown(dim)}; pass -1 for the last dimension")
    if not -dims <= place < dims:
        raise IndexError(f"dim must be in [-{dims}, {dims - 1}], got {place}")
    return place % dims


def check_target(target: Tensor, logits: Tensor) -> None:
    """Raise TypeError or ValueError unless target holds class indices for these logits."""
    shape = logits.shape
    if len(shape) == 1:
        check_labels_of(target, logits.shape[:0], "logits", logits)
    else:
        rows: torch.Size = shape[:1] if len(shape) == 2 else shape[:1] + shape[2:]  # type: ignore[assignment]
        check_labels_of(target, rows, "logits (classes are dimension 1)", logits)


def check_labels_of(
    target: Tensor, shape: torch.Size, name: str, other: Tensor, argument: str = "target"
) -> None:
    """Raise TypeError or ValueError unless target holds class indices, in a shape, for a tensor."""
    check_label_dtype(target, argument)
    if target.shape != shape:
        raise ValueError(
            f"{argument} must have shape {tuple(shape)} for {name} of shape {tuple(other.shape)}, "
            f"got {tuple(target.shape)}"
        )
    check_device(argument, target, other)


def check_label_dtype(target: Tensor, argument: str) -> None:
    """Raise TypeError unless a tensor, named so, can hold class indices."""
    check_dense(argument, target)
    if target.dtype not in (torch.int64, torch.int32):
        hint = (
            "class probabilities are for ak.robust_loss, ak.linear_robust_loss and their modules; "
            "pass class indices here"
            if target.is_floating_point()
            else "convert it with .long()"
        )
        raise TypeError(
            f"{argument} must be int64 or int32 class indices, got {target.dtype}; {hint}"
        )


def check_mask(name: str, mask: Tensor, shape: torch.Size, other: Tensor) -> None:
    """Raise TypeError or ValueError unless a mask, named so, is bool, of a shape, on a device."""
    check_dense(name, mask)
    if mask.dtype != torch.bool:
        raise TypeError(f"{name} must be bool, got {mask.dtype}; convert it with .bool()")
    if mask.shape != shape:
        raise ValueError(
            f"{name} must have shape {tuple(shape)}, one value for each row of logits of shape "
            f"{tuple(other.shape)}, got {tuple(mask.shape)}"
        )
    check_device(name, mask, other)


def check_class_weight(weight: Tensor, num_classes: int, logits: Tensor) -> None:
    """Raise unless ``weight`` is a floating (K,), of all classes, on the logits' device."""
    check_floating("weight", weight)
    if weight.shape != (num_classes,):
        raise ValueError(
            f"weight must have shape ({num_classes},), one factor for each class, "
            f"got {tuple(weight.shape)}"
        )
    check_device("weight", weight, logits)


def check_fixed_weight(weight: Tensor | None) -> Tensor | None:
    """The ``weight`` of a module, its buffer; raise unless it is a constant floating (K,)."""
    if weight is None:
        return None
    check_floating("weight", weight)
    if weight.dim() != 1:
        raise ValueError(
            f"weight must have shape (K,), one factor for each class, got {tuple(weight.shape)}"
        )
    if weight.requires_grad:
        raise ValueError(
            "weight must not require grad in a module, which keeps it as a buffer that no "
            "optimiser is given; pass weight.detach(), or to learn it, call the function "
            "(ak.robust_loss) with it in every step"
        )
    return weight


def check_sample_weight(sample_weight: Tensor, target: Tensor) -> None:
    """Raise unless ``sample_weight`` is floating and has the target's shape."""
    check_floating("sample_weight", sample_weight)
    if sample_weight.shape != target.shape:
        raise ValueError(
            f"sample_weight must have the target's shape {tuple(target.shape)}, "
            f"got {tuple(sample_weight.shape)}"
        )
    check_device("sample_weight", sample_weight, target)


def check_inplace(logits: Tensor) -> None:
    """Raise where a gradient written over the logits would be lost or wrong.

    Raises:
        RuntimeError: it may be somebody else's that is wrong, whom PyTorch would not tell.
        ValueError: the logits themselves do not do.
    """
    if logits.requires_grad and logits.is_leaf:
        raise ValueError(
            "inplace=True needs logits that were computed, such as a layer's output; these are a "
            "leaf that requires grad, whose .grad would share their memory: pass inplace=False"
        )
    reason = why_unchecked(logits)
    if reason:
        raise RuntimeError(
            f"inplace=True overwrites the logits, and PyTorch would not tell whoever saved them "
            f"for backward, which would be silently wrong: these {reason}; pass inplace=False"
        )
    if _may_overlap(logits):
        raise ValueError(
            f"inplace=True needs logits without overlapping memory, got an expanded or unfolded "
            f"tensor (shape {tuple(logits.shape)}, strides {logits.stride()}): pass inplace=False"
        )
    if not one_stride(logits):
        raise ValueError(
            f"inplace=True needs logits whose dimensions after the classes can be walked with one "
            f"stride, got shape {tuple(logits.shape)} with strides {logits.stride()}: pass "
            f"contiguous or channels_last logits, or inplace=False"
        )


def _may_overlap(tensor: Tensor) -> bool:
    """Whether a step along some dimension may stay inside what smaller steps reach."""
    reached = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride < reached:
            return True
        reached += stride * (size - 1)
    return False


def check_device(name: str, tensor: Tensor, other: Tensor) -> None:
    """Raise ValueError unless two tensors are on one device."""
    if tensor.device != other.device:
        raise ValueError(
            f"{name} is on {tensor.device} and must be on {other.device}; "
            f"move it with {name}.to({str(other.device)!r})"
        )


def class_dim(logits: Tensor) -> int:
    """The dimension of the classes: 1, or 0 for a single row."""
    return 0 if logits.dim() == 1 else 1


def check_dtype(name: str, tensor: Tensor) -> None:
    """Raise TypeError unless a tensor, named so, is of a dtype that kernels compute with."""
    check_dense(name, tensor)
    if tensor.dtype not in FLOATING:
        raise TypeError(
            f"{name} must be float64, float32, float16 or bfloat16, got {tensor.dtype}; "
            f"convert with {_to_float(tensor)}"
        )


def check_floating(name: str, tensor: Tensor) -> None:
    """Raise TypeError unless a tensor, named so, is of floats."""
    check_dense(name, tensor)
    if not tensor.is_floating_point():
        raise TypeError(
            f"{name} must be floating, got {tensor.dtype}; convert it with {_to_float(tensor)}"
        )


def check_dense(name: str, tensor: Tensor) -> None:
    """Raise TypeError unless an argument, named so, is a tensor whose every element is there."""
    if type(tensor) in PLAIN and tensor.layout is torch.strided and not tensor.is_nested:
        return
    if not isinstance(tensor, Tensor):
        raise TypeError(
            f"{name} must be a tensor, got {type(tensor).__name__}; convert it with torch.as_tensor"
        )
    if isinstance(tensor, MaskedTensor):
        raise TypeError(
            f"{name} must be a tensor without a mask, got a MaskedTensor; pass {name}.get_data() "
            f"and say by ignore_index, sample_weight, or a logit of -inf what does not count"
        )
    if isinstance(tensor, UninitializedParameter | UninitializedBuffer):  # not is_lazy: Dynamo
        raise TypeError(
            f"{name} must have a shape, got an {type(tensor).__name__}; call the lazy module that "
            f"it belongs to once, with an input"
        )
    if tensor.is_nested:
        raise TypeError(
            f"{name} must be one dense tensor, got a nested one; pass the rows of its parts, "
            f"torch.cat({name}.unbind())"
        )
    if tensor.layout is not torch.strided:
        raise TypeError(
            f"{name} must be dense, got a tensor of layout {tensor.layout}; convert it with "
            f".to_dense()"
        )


def _to_float(tensor: Tensor) -> str:
    if tensor.is_quantized:
        return ".dequantize()"
    return ".real or .abs()" if tensor.is_complex() else ".float()"
