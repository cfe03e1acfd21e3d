"""What recipes remember of each sample of the training set."""

from __future__ import annotations

import torch
from torch import Tensor

from anl_kernels.checks import check_device, transforming
from anl_kernels.sharding.dtensor import is_dtensor


def check_num_samples(num_samples: int) -> int:
    """The number of samples; raise ValueError if it cannot be."""
    if type(num_samples) is not int or num_samples < 1:
        raise ValueError(f"num_samples must be a positive int, got {num_samples!r}")
    return num_samples


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
