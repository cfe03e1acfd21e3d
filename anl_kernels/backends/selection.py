"""Which backend runs a call: what was asked for, what the tensors are on, what is installed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import ModuleType
from typing import Any, TypeVar

import torch

from anl_kernels.backends.cpu import library
from anl_kernels.terms import Terms

AUTO = "auto"
REFERENCE = "reference"
TRITON = "triton"
CPU = "cpu"
BACKENDS = (TRITON, CPU, REFERENCE)

AUTO_ON = {"cuda": TRITON, "cpu": CPU}
"""The kernels that ``auto`` takes on a type of device; the reference where there are none."""

_requested = AUTO
_F = TypeVar("_F", bound=Callable[..., Any])


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run the losses called in this context on one backend.

    Args:
        name: "triton", "cpu", "reference", or "auto" for the fastest that fits the tensors.

    A backend asked for by name never falls back: a call it cannot serve raises RuntimeError with
    the reason. The setting holds for the process, not for the thread.

    Raises:
        ValueError: the name is unknown.
        RuntimeError: the backend cannot run on this machine.

    Example:
        >>> with ak.use_backend("reference"):
        ...     loss = criterion(logits, target)
    """
    global _requested
    if name not in (AUTO, *BACKENDS):
        raise ValueError(f"backend must be one of {', '.join((AUTO, *BACKENDS))}, got {name!r}")
    reason = None if name == AUTO else why_not(name)
    if reason:
        raise RuntimeError(f"backend {name!r} is not available: {reason}")
    previous, _requested = _requested, name
    try:
        yield
    finally:
        _requested = previous


def choose_backend(device_type: str, terms: Terms | None = None) -> str:
    """The backend for tensors on a device and a sum of terms, by name.

    ``auto`` takes the kernels for the device, and the reference where there are none, and for a
    user's own terms that no kernel knows.

    Raises:
        RuntimeError: the backend asked for cannot run there.
    """
    if _requested == AUTO:
        name = AUTO_ON.get(device_type, REFERENCE)
        usable = why_not(name) is None and not _terms_without_kernel(name, terms)
        return name if usable else REFERENCE
    unknown = _terms_without_kernel(_requested, terms)
    if unknown:
        raise RuntimeError(
            f"backend {_requested!r} has no kernel for {', '.join(unknown)}: add a functor for it "
            f"(CONTRIBUTING.md), or choose ak.use_backend('auto')"
        )
    reason = _why_not_on(_requested, device_type)
    if reason:
        raise RuntimeError(f"backend {_requested!r} cannot run on {device_type} tensors: {reason}")
    return _requested


def _why_not_on(name: str, device_type: str) -> str | None:
    if name == TRITON and device_type != "cuda" and not interpreting():
        return (
            "move logits and target to a GPU, choose ak.use_backend('auto'), or set "
            "TRITON_INTERPRET=1 before Python starts to run its kernels in Triton's (slow) "
            "interpreter"
        )
    if name == CPU and device_type != "cpu":
        return "move logits and target to the CPU, or choose ak.use_backend('auto')"
    return None


def _terms_without_kernel(name: str, terms: Terms | None) -> list[str]:
    if terms is None or name == REFERENCE or why_not(name) is not None:
        return []
    return [
        type(term).__name__
        for term in terms.terms
        if not (term.may_have_kernel and _has_kernel(name, term.functor))
    ]


def _constant(function: _F) -> _F:
    """Let Dynamo call, not trace, a function whose answer never changes.

    It may not trace into a cache or an import. This is ``torch.compiler.assume_constant_result``,
    which would import the whole compiler, and Triton, with this package.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@_constant
def _has_kernel(name: str, functor: str) -> bool:
    return load_backend(name).knows(functor)


@_constant
def why_not(name: str) -> str | None:
    """The reason that a backend cannot run on this machine, or None."""
    if name == CPU:
        return library.why_not()
    return _why_not_triton() if name == TRITON else None


@lru_cache
def _why_not_triton() -> str | None:
    try:
        import triton
    except ImportError as error:
        return f"Triton cannot be imported ({error}); pip install 'triton>=3.6'"
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version < (3, 6):
        return f"Triton {triton.__version__} is too old; pip install 'triton>=3.6'"
    if not torch.cuda.is_available() and not interpreting():
        return "no CUDA or ROCm device is visible, and TRITON_INTERPRET=1 is not set"
    return None


def interpreting() -> bool:
    """Whether Triton runs its kernels in the interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@lru_cache
def load_backend(name: str) -> ModuleType:
    """The module that implements :class:`anl_kernels.backends.interface.Backend`."""
    if name == TRITON:
        from anl_kernels.backends.triton import launch

        return launch
    if name == CPU:
        from anl_kernels.backends.cpu import launch as cpu_launch

        return cpu_launch
    raise ValueError(f"{name!r} is not a kernel backend")
