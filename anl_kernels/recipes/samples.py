"""What recipes remember of each sample of the training set."""

from __future__ import annotations

import torch
from torch import Tensor

from anl_kernels.checks import check_dense, check_device
from anl_kernels.distributed.local_parts import is_dtensor
from anl_kernels.numbers import as_int, as_number, shown
from anl_kernels.tracing import transforming


def check_num_samples(num_samples: int) -> int:
    """The number of samples; raise ValueError if it cannot be."""
    size = as_int(num_samples)
    if size is None or size < 1:
        raise ValueError(
            f"num_samples must be a positive int, the size of the training set, got "
            f"{shown(num_samples)}"
        )
    return size


def check_share(name: str, value: float) -> float:
    """A probability or share, named so; raise ValueError unless it is strictly in (0, 1)."""
    share = as_number(value)
    if share is None or not 0 < share < 1:
        raise ValueError(f"{name} must be in (0, 1), got {shown(value)}")
    return share


def check_index(index: Tensor, target: Tensor, num_samples: int, memory: Tensor) -> None:
    """Raise unless ``index`` has the place of each sample of a batch in the training set.

    Raises:
        TypeError: index is no tensor of int64.
        ValueError: it has not the target's shape, or is not on the memory's device.
        IndexError: a place is outside [0, num_samples), on a CPU. On a GPU, which this does not
            wait for, PyTorch's own assertion fails.
    """
    for name, tensor in (("index", index), ("target", target)):
        if is_dtensor(tensor):
            raise TypeError(
                f"{name} must be a plain tensor with all rows that the logits have, got a DTensor; "
                f"pass {name}.full_tensor()"
            )
    if not isinstance(index, Tensor) or index.dtype != torch.int64:
        got = index.dtype if isinstance(index, Tensor) else type(index).__name__
        raise TypeError(f"index must be an int64 tensor, got {got}")
    check_dense("index", index)
    if index.shape != target.shape:
        raise ValueError(
            f"index must have the target's shape {tuple(target.shape)}, the place of each row's "
            f"sample in the training set, got {tuple(index.shape)}"
        )
    check_device("index", index, memory)
    if index.device.type != "cpu" or transforming():
        return
    outside = (index < 0) | (index >= num_samples)
    if outside.any():
        raise IndexError(
            f"index has {index[outside][0].item()}, outside [0, {num_samples}); num_samples is the "
            f"size of the whole training set"
        )
