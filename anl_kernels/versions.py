"""Whether autograd would find out that a tensor has been overwritten."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from anl_kernels.tracing import PLAIN

_WITHOUT_VERSIONS = {
    "CompiledFunctionBackward": "come from a function that torch.compile made",
    "GraphedBackward": "come from torch.cuda.make_graphed_callables",
    "_ToTorchTensorBackward": "are the local part of a DTensor, which has a version of its own",
}
"""What makes tensors and keeps them for its backward without a look at their version."""


def why_unchecked(tensor: Tensor) -> str | None:
    """Why a tensor may be saved for backward where its version is not compared; None if it is.

    Whoever saved it would compute with what has been written over it, and nobody would know.
    Hooks that were there when it was saved, but are not now, are not found.
    """
    if torch._C._autograd._top_saved_tensors_default_hooks(False) is not None:
        return (
            "are used inside a saved-tensor hook: torch.utils.checkpoint with use_reentrant=False, "
            "save_on_cpu, saved_tensors_hooks"
        )
    if type(tensor) not in PLAIN and is_traceable_wrapper_subclass(tensor):
        return f"are a {type(tensor).__name__}, whose version is not that of its local part"
    base = tensor._base if tensor._is_view() and tensor._base is not None else tensor
    # The local part of a DTensor is a view of what has no gradient.
    for made in (base.grad_fn, tensor.grad_fn):
        if made is not None and made.name() in _WITHOUT_VERSIONS:
            return _WITHOUT_VERSIONS[made.name()]
    return None
