"""Labels of any kind as int64 on the CPU, and back to their kind.

Noise is drawn on the CPU, since a seed means something else on each device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from anl_kernels import numbers

CPU = torch.device("cpu")
"""Named wherever a tensor is made: the default device may be another."""


@dataclass(frozen=True)
class Labels:
    """Labels that have been checked."""

    given: Any
    """As they came: a tensor, or a NumPy array of what else it was."""
    flat: Tensor
    """(M,) int64 on the CPU."""
    counted: Tensor
    """(M,) bool: not the ignore_index."""
    num_classes: int
    void: int | None
    """The ignore_index where it is in [0, K): no label may become it."""
    restore: Callable[[Tensor], Any]
    """Gives a flat tensor the shape, device and kind of what was given."""

    def changed_to(self, flat: Tensor) -> tuple[Any, Any]:
        """Other labels and the mask of those that differ, in the kind of what was given."""
        labels = self.restore(flat)
        dtype = self.given.dtype
        labels = labels.to(dtype) if isinstance(labels, Tensor) else labels.astype(dtype)
        return labels, self.restore(flat != self.flat)


def read(labels: Any, num_classes: int, ignore_index: int) -> Labels:
    """Check labels; IndexError names the first that is neither a class nor ``ignore_index``."""
    num_classes = check_num_classes(num_classes)
    ignore_index = as_int("ignore_index", ignore_index)
    void = ignore_index if 0 <= ignore_index < num_classes else None
    if void is not None and num_classes < 3:
        raise ValueError(
            f"num_classes must be at least 3 where ignore_index ({void}) is one of the classes, "
            f"got {num_classes}: there is nothing else to change a label to"
        )
    if isinstance(labels, Tensor):
        given, flat, restore = _read_tensor(labels)
        largest = torch.iinfo(labels.dtype).max
    else:
        given, flat, restore, largest = _read_array(labels)
    if largest < num_classes - 1:
        raise ValueError(
            f"labels of {given.dtype} cannot hold {num_classes} classes: convert them to int64"
        )
    counted = flat != ignore_index
    outside = counted & ((flat < 0) | (flat >= num_classes))
    if outside.any():
        row = int(outside.nonzero()[0, 0])
        raise IndexError(
            f"label {row} of the labels is {int(flat[row])}, outside [0, {num_classes}) and not "
            f"ignore_index ({ignore_index}); correct the label or pass ignore_index"
        )
    return Labels(given, flat, counted, num_classes, void, restore)


def check_num_classes(num_classes: int) -> int:
    """The number of classes; TypeError or ValueError unless some can flip."""
    num_classes = as_int("num_classes", num_classes)
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2 to change labels, got {num_classes}")
    return num_classes


def check_rate(rate: float) -> float:
    """The rate as a float; ValueError unless it is in [0, 1], TypeError of no number."""
    share = numbers.as_number(_item(rate))
    if share is None:
        raise TypeError(f"rate must be a number in [0, 1], got {numbers.shown(rate)}")
    if not 0 <= share <= 1:
        raise ValueError(f"rate must be a share in [0, 1], got {share!r}")
    return float(share)


def generator(seed: int) -> torch.Generator:
    """A generator that every call makes anew from its seed; ValueError outside int64."""
    return torch.Generator(CPU).manual_seed(check_seed("seed", seed))


def check_seed(name: str, seed: int) -> int:
    """An int of 64 bits."""
    seed = as_int(name, seed)
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"{name} must be in [-2**63, 2**63), got {seed}")
    return seed


def as_int(name: str, value: Any) -> int:
    """An int, also of NumPy or of a 0-d tensor; TypeError names the argument."""
    whole = numbers.as_int(_item(value))
    if whole is None:
        raise TypeError(f"{name} must be an int, got {numbers.shown(value)}")
    return whole


def _item(value: Any) -> Any:
    """What is in a 0-d tensor: noise is drawn on the CPU, and may wait for a GPU."""
    return value.item() if isinstance(value, Tensor) and value.dim() == 0 else value


def _read_tensor(labels: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor], Any]]:
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels must be integers, got {labels.dtype}; convert them with .long()")

    def restore(flat: Tensor) -> Tensor:
        return flat.reshape(labels.shape).to(labels.device)

    # A copy, since whoever holds the labels may change them later.
    return labels, labels.detach().flatten().to("cpu", torch.int64, copy=True), restore


def _read_array(labels: Any) -> tuple[Any, Tensor, Callable[[Tensor], Any], int]:
    import numpy as np  # the package itself needs it nowhere else

    array = np.asarray(labels)
    if not array.size and not hasattr(labels, "dtype"):
        array = array.astype(np.int64)  # NumPy says float64 of an empty list
    if array.dtype.kind not in "iu":
        raise TypeError(
            f"labels must be integers, got {array.dtype}; convert them with astype(int)"
        )

    def restore(flat: Tensor) -> Any:
        return flat.reshape(array.shape).numpy()

    flat = torch.from_numpy(array.astype(np.int64)).flatten()
    return array, flat, restore, int(np.iinfo(array.dtype).max)
