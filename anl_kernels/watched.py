"""The check of labels where code runs that was only recorded when the loss was called.

In compiled code, and in a transform of ``torch.func``, no label has a value yet. An operator takes
the labels and hands them on: it raises when the code runs, and cannot be left out, since the loss
needs what it hands on. On a CPU it is always there, as eager code's check is; on a GPU, where it
waits for the device, inside :func:`anl_kernels.check_labels`. Exported programs are without it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from anl_kernels import checks
from anl_kernels.operators import fake, library, operator
from anl_kernels.settings import settings
from anl_kernels.tracing import transforming


def watched_labels(
    target: Tensor, num_classes: int, ignore_index: int, argument: str = "target"
) -> Tensor:
    """The labels; where they have no values now, those that will have been looked at."""
    wanted = target.device.type == "cpu" or settings.check_labels
    if not wanted or not transforming() or torch.compiler.is_exporting():
        return target
    return torch.ops.anl_kernels.watched_labels(target, num_classes, ignore_index, argument)


@operator(
    "watched_labels(Tensor target, SymInt num_classes, int ignore_index, str argument) -> Tensor"
)
def _watched_labels(target: Tensor, num_classes: int, ignore_index: int, argument: str) -> Tensor:
    checks.find_wrong_label(target, num_classes, ignore_index, argument)
    return target.clone()


@fake("watched_labels")
def _(target: Tensor, *args: Any) -> Tensor:
    return torch.empty_like(target)


@torch.library.register_vmap("anl_kernels::watched_labels", lib=library)
def _(info: Any, in_dims: tuple[Any, ...], target: Tensor, *args: Any) -> tuple[Tensor, Any]:
    return torch.ops.anl_kernels.watched_labels(target, *args), in_dims[0]
