"""What counts as a number where an argument is to be one: the one place that says so.

Python's and NumPy's numbers do, 0-d arrays among them, and those that a compiler has yet to
compute. Truth values, strings and tensors do not: a tensor's value may be on a GPU.
"""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import torch

_PLAIN = (float, int)
_SYMBOLIC = (torch.SymFloat, torch.SymInt)


def as_int(value: Any) -> int | None:
    """The value as Python's int; None unless it is an integer."""
    if type(value) is int or isinstance(value, torch.SymInt):
        return value  # type: ignore[return-value]
    value = _without_numpy(value)
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    return int(value) if whole else None


def as_number(value: Any) -> float | None:
    """The value as Python's float, or int; None unless it is a real number."""
    if type(value) in _PLAIN or isinstance(value, _SYMBOLIC):
        return value
    value = _without_numpy(value)
    real = isinstance(value, Real) and not isinstance(value, bool)
    return float(value) if real else None


def as_flag(value: Any) -> bool | None:
    """The value as Python's bool; None unless it is a truth value, or 0 or 1."""
    value = _without_numpy(value)
    if isinstance(value, bool):
        return value
    return bool(value) if type(value) in _PLAIN and value in (0, 1) else None


def shown(value: Any) -> str:
    """The value for an error's words; of a tensor or an array not the elements, but the shape."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if getattr(value, "ndim", 0) and hasattr(value, "shape"):
        return f"a {type(value).__name__} of shape {tuple(value.shape)}"
    return repr(value)


def _without_numpy(value: Any) -> Any:
    """What is in a NumPy scalar, or in an array of no dimensions."""
    if isinstance(value, torch.Tensor) or getattr(value, "ndim", None) != 0:
        return value
    return value.item() if hasattr(value, "item") else value
