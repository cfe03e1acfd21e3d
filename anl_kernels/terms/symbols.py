"""Numbers of terms in code that ``torch.compile`` traces.

Dynamo makes a number that changes between calls a symbol, and the symbol a 0-d tensor among the
graph's inputs, where all that is done with it is arithmetic with tensors. Anything else, such as an
operator's ``float`` argument, ``clamp`` or ``math.log``, makes it a constant again, and every value
another graph. So formulas and operators take what :func:`known` or a tensor is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def known(number: float) -> bool:
    """Whether the value is at hand: always, but for a symbol in code that is traced."""
    if not torch.compiler.is_compiling():
        return True
    return torch.fx.experimental.symbolic_shapes.has_static_value(number)


def as_tensor(number: float) -> Tensor:
    """A number as a 0-d float64 tensor on the CPU, by the one operation that keeps a symbol.

    ``torch.tensor``, ``full`` and ``scalar_tensor`` make it a constant. On the CPU it goes with
    tensors on any device, as a number does, and nothing waits.
    """
    return torch.ones((), dtype=torch.float64, device="cpu") * number


def operand(number: float) -> float | Tensor:
    """A number for a formula: itself if it is known, else a 0-d tensor."""
    return number if known(number) else as_tensor(number)


def log(number: float) -> float | Tensor:
    """The logarithm of an :func:`operand`."""
    return math.log(number) if known(number) else as_tensor(number).log()


def at_least(values: Tensor, bound: float | Tensor) -> Tensor:
    """``values.clamp(min=bound)``, for a bound that is an :func:`operand`."""
    # maximum takes a 0-d tensor from the CPU as it takes a number; clamp does not.
    if isinstance(bound, Tensor):
        return torch.maximum(values, bound.to(values.dtype))
    return values.clamp(min=bound)


def at_most(values: Tensor, bound: float | Tensor) -> Tensor:
    """``values.clamp(max=bound)``, as :func:`at_least`."""
    return -at_least(-values, -bound)
