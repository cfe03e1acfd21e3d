"""FSDP2: what its modules do to the arguments of a loss."""

from __future__ import annotations

import sys
import warnings
from functools import cache

import torch
from torch import Tensor


def warn_of_rounding(sample_weight: Tensor) -> None:
    """Say once that weights of rows have 16 bits, where FSDP2 may have cut them down to that.

    Of a cast nothing is to be seen afterwards, and one by the root of a model is made far from the
    loss. So whoever gives such weights on purpose beside ``fully_shard`` is told as well.
    """
    if sample_weight.dtype not in (torch.bfloat16, torch.float16) or _is_unused():
        return
    if not torch.compiler.is_compiling():
        _warn(sample_weight.dtype)


def _is_unused() -> bool:
    """Whether nothing in this process was given to fully_shard."""
    module = sys.modules.get("torch.distributed.fsdp")
    return module is None or not module.FSDPModule.__subclasses__()


@cache
def _warn(dtype: torch.dtype) -> None:
    warnings.warn(
        f"sample_weight is {dtype} in a process that uses fully_shard: if you gave float32, a "
        f"MixedPrecisionPolicy has rounded it, as it rounds all floating inputs of a module's "
        f"forward; to keep float32 give fully_shard MixedPrecisionPolicy(..., "
        f"cast_forward_inputs=False) for each module whose forward takes sample_weight, and hand "
        f"the hidden states over in the dtype of the parameters",
        stacklevel=2,
    )
