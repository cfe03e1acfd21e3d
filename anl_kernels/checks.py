"""Argument checks: every error names the argument, the value received and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Real

import torch
from torch import Tensor
from torch._guards import detect_fake_mode
from torch.nn import Parameter

from anl_kernels.backends.cpu import library
from anl_kernels.backends.layout import one_stride
from anl_kernels.labels import is_ignored
from anl_kernels.settings import settings
from anl_kernels.versions import why_unchecked

_PLAIN = (Tensor, Parameter)
_FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@contextmanager
def check_labels() -> Iterator[None]:
    """Check every label in this context, on GPUs too, where it costs a synchronisation.

    Outside, a label out of range on a GPU makes its row's loss and gradient NaN; on a CPU it
    always raises IndexError. The setting is a context variable, as :func:`use_backend`'s is;
    ``ANL_KERNELS_CHECK_LABELS=1`` in the environment does the same for a whole process.
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
    if logits.dim() == 0:
        raise ValueError("logits must have shape (K,), (N, K) or (N, K, d1, ...), got shape ()")


def check_num_classes(num_classes: int | None, available: int, name: str, tensor: Tensor) -> int:
    """The number of classes, of those available in a tensor; raise ValueError if it cannot be."""
    if not available:
        raise ValueError(f"{name} have no classes: their shape is {tuple(tensor.shape)}")
    if num_classes is None:
        num_classes = available
    elif type(num_classes) is not int or not 1 <= num_classes <= available:
        raise ValueError(
            f"num_classes must be an int in [1, {available}], the number of columns that there "
            f"are, got {num_classes!r}; the columns from num_classes on are padding"
        )
    return num_classes


def check_target(target: Tensor, logits: Tensor) -> None:
    """Raise TypeError or ValueError unless target holds class indices for these logits."""
    shape = logits.shape[:1] + logits.shape[2:] if logits.dim() > 1 else logits.shape[:0]
    name = "logits (classes are dimension 1)" if logits.dim() > 1 else "logits"
    check_labels_of(target, shape, name, logits)


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
    if not isinstance(target, Tensor):
        raise TypeError(f"{argument} must be a tensor, got {type(target).__name__}")
    if target.dtype not in (torch.int64, torch.int32):
        hint = (
            "class probabilities are not supported, pass class indices"
            if target.is_floating_point()
            else "convert it with .long()"
        )
        raise TypeError(
            f"{argument} must be int64 or int32 class indices, got {target.dtype}; {hint}"
        )


def is_number(value: object) -> bool:
    """Whether a value is a real number, NumPy's among them, and not a truth value."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_mask(name: str, mask: Tensor, shape: torch.Size, other: Tensor) -> None:
    """Raise TypeError or ValueError unless a mask, named so, is bool, of a shape, on a device."""
    if not isinstance(mask, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(mask).__name__}")
    if mask.dtype != torch.bool:
        raise TypeError(f"{name} must be bool, got {mask.dtype}; convert it with .bool()")
    if mask.shape != shape:
        raise ValueError(
            f"{name} must have shape {tuple(shape)}, one value for each row of logits of shape "
            f"{tuple(other.shape)}, got {tuple(mask.shape)}"
        )
    check_device(name, mask, other)


def check_labels_in_range(
    target: Tensor, num_classes: int, ignore_index: int, argument: str = "target"
) -> int | None:
    """Raise IndexError naming the first label that is neither a class nor ``ignore_index``.

    On a CPU always; elsewhere only on request, since it waits for the device. Not where no value
    may decide what runs: in compiled and traced code, functorch transforms and dispatch modes. The
    row is NaN there.

    Returns:
        How many labels are not ``ignore_index``, where the check has counted them.
    """
    on_request = target.device.type == "cpu" or settings.check_labels
    if not on_request or not target.numel():
        return None
    if on_plain_cpu(target):
        counted, first = torch.ops.anl_kernels_cpu.scan_labels(target, num_classes, ignore_index)
        if first < 0:
            return counted
    elif _watched(target):
        return None
    outside = ((target < 0) | (target >= num_classes)) & ~is_ignored(target, ignore_index)
    if not outside.any():
        return None
    row = tuple(outside.nonzero()[0].tolist())
    index = ", ".join(map(str, row))
    raise IndexError(
        f"{argument}[{index}] is {target[row].item()}, outside [0, {num_classes}) and not "
        f"ignore_index ({ignore_index}); correct the label or pass ignore_index"
    )


def check_class_weight(weight: Tensor, num_classes: int, logits: Tensor) -> None:
    """Raise unless ``weight`` is a floating (K,), of all classes, on the logits' device."""
    check_floating("weight", weight)
    if weight.shape != (num_classes,):
        raise ValueError(
            f"weight must have shape ({num_classes},), one factor for each class, "
            f"got {tuple(weight.shape)}"
        )
    check_device("weight", weight, logits)


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


def transforming() -> bool:
    """Whether the call is being compiled, or is inside a transform of ``torch.func``."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def on_plain_cpu(tensor: Tensor) -> bool:
    """Whether the C++ operators can be called on a tensor with nothing in between to see it."""
    return (
        not _watched(tensor)
        and tensor.device.type == "cpu"
        and type(tensor) in _PLAIN
        and library.why_not() is None
    )


def _watched(tensor: Tensor) -> bool:
    """Whether a call is recorded, not just made; or its tensors have no values."""
    if transforming() or torch.jit.is_tracing() or torch._C._len_torch_dispatch_stack():
        return True
    return type(tensor) not in _PLAIN and detect_fake_mode([tensor]) is not None


def class_dim(logits: Tensor) -> int:
    """The dimension of the classes: 1, or 0 for a single row."""
    return 0 if logits.dim() == 1 else 1


def check_dtype(name: str, tensor: Tensor) -> None:
    """Raise TypeError unless a tensor, named so, is of a dtype that kernels compute with."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in _FLOATING:
        raise TypeError(
            f"{name} must be float64, float32, float16 or bfloat16, got {tensor.dtype}; "
            f"convert with .float()"
        )


def check_floating(name: str, tensor: Tensor) -> None:
    """Raise TypeError unless a tensor, named so, is of floats."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be floating, got {tensor.dtype}; convert it with .float()")
