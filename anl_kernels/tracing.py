"""Who sees a call: whether it is only recorded, transformed or differentiated, and by whom."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active, _is_tracing
from torch._guards import detect_fake_mode
from torch.autograd import forward_ad
from torch.compiler import is_compiling, is_exporting
from torch.nn import Parameter

PLAIN = (Tensor, Parameter)
"""The types of tensors that hide nothing: operators see all of them."""


def transforming() -> bool:
    """Whether the call is being compiled, or is inside a transform of ``torch.func``."""
    return is_compiling() or _are_functorch_transforms_active()


def forward_mode() -> bool:
    """Whether a forward-mode derivative is being taken, which only formulas have.

    Both of ``torch.func.jvp`` and its kin and of ``torch.autograd.forward_ad``.
    """
    return forward_ad._current_level >= 0


def only_formulas() -> bool:
    """Whether derivatives are taken that only formulas have.

    Forward-mode ones; and those of a transform of ``torch.func`` that is being compiled: Dynamo
    (2.13) does not see that its tensors require grad, and leaves out the backward of a Function.
    """
    return forward_mode() or (is_compiling() and _are_functorch_transforms_active())


def recorded_for_others() -> bool:
    """Whether the call is recorded for where this package, and its operators, need not be."""
    return is_exporting() or (not is_compiling() and _is_tracing())


def watched(tensor: Tensor) -> bool:
    """Whether a call is recorded, not just made; or its tensors have no values."""
    if transforming() or torch.jit.is_tracing() or torch._C._len_torch_dispatch_stack():
        return True
    return type(tensor) not in PLAIN and detect_fake_mode([tensor]) is not None


def plain_cpu(tensor: Tensor) -> bool:
    """Whether a tensor is an ordinary one of the CPU, in a call that nobody watches."""
    if watched(tensor) or not tensor.is_cpu or type(tensor) not in PLAIN:
        return False
    return not torch._C._functorch.is_legacy_batchedtensor(tensor)  # autograd's is_grads_batched
