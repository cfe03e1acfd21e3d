"""What ``torch.utils.flop_counter.FlopCounterMode`` is told of the operators of head and loss."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from anl_kernels.linear.operators import Projection, Specs

_NUM_TENSORS = 6


def register_formulas() -> None:
    """Tell PyTorch's formulas, and the counters that run now, if anybody counts.

    Not at import: their module imports Triton. A counter copies the formulas when it is made.
    """
    module = sys.modules.get("torch.utils.flop_counter")
    if module is None:
        return
    modes = _get_current_dispatch_mode_stack()
    counters = [m.counter for m in modes if isinstance(m, module._FlopCounterMode)]
    for registry in (module.flop_registry, *(counter.flop_registry for counter in counters)):
        for operator, formula in FORMULAS.items():
            registry.setdefault(operator, formula)


def _linear_loss(*args: Any, out_val: Any = None, **_: Any) -> int:
    specs = Specs.of(args[_NUM_TENSORS:])
    gradients = _num_gradients(specs.projection) if specs.request.wants("grad") else 0
    return _products(1 + gradients, args[0], specs.projection)


def _linear_grad(*args: Any, out_val: Any = None, **_: Any) -> int:
    projection = Specs.of(args[_NUM_TENSORS:]).projection
    return _products(1 + _num_gradients(projection), args[0], projection)


def of_log_probs(*args: Any, out_val: Any = None, **_: Any) -> int:
    """Of the operator that gives log-probabilities of several classes a row."""
    return _products(1, args[0], Specs.of(args[5:]).projection)


def of_log_probs_gradient(*args: Any, out_val: Any = None, **_: Any) -> int:
    """Of the operator that gives their gradient."""
    projection = Specs.of(args[9:]).projection
    return _products(1 + _num_gradients(projection), args[0], projection)


def _num_gradients(projection: Projection) -> int:
    """How many of the gradients are products: the bias's is a sum."""
    return projection.needs_hidden + projection.needs_weight


def _products(count: int, hidden: torch.Tensor, projection: Projection) -> int:
    """Of (N, D), (K, D) and (N, K): of all rows, whichever are ignored."""
    num_rows, hidden_size = hidden.shape
    return 2 * num_rows * hidden_size * projection.num_classes * count


FORMULAS = {
    torch.ops.anl_kernels.linear_loss: _linear_loss,
    torch.ops.anl_kernels.linear_grad: _linear_grad,
}
"""Those of this package; modules with more operators add them."""
