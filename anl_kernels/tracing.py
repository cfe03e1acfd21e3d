"""Who sees a call: whether it is only recorded, transformed or differentiated, and by whom."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._guards import detect_fake_mode
from torch.autograd import forward_ad
from torch.nn import Parameter

PLAIN = (Tensor, Parameter)
"""The types of tensors that hide nothing: operators see all of them."""


def transforming() -> bool:
    """Whether the call is being compiled, or is inside a transform of ``torch.func``."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def forward_mode() -> bool:
    """Whether a forward-mode derivative is being taken, which only formulas have.

    Both of ``torch.func.jvp`` and its kin and of ``torch.autograd.forward_ad``.
    """
    return forward_ad._current_level >= 0


def recorded_for_others() -> bool:
    """Whether the call is recorded for where this package, and its operators, need not be."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


def watched(tensor: Tensor) -> bool:
    """Whether a call is recorded, not just made; or its tensors have no values."""
    if transforming() or torch.jit.is_tracing() or torch._C._len_torch_dispatch_stack():
        return True
    return type(tensor) not in PLAIN and detect_fake_mode([tensor]) is not None


def plain_cpu(tensor: Tensor) -> bool:
    """Whether a tensor is an ordinary one of the CPU, in a call that nobody watches."""
    return not watched(tensor) and tensor.device.type == "cpu" and type(tensor) in PLAIN
