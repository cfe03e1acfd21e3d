"""Which backend runs a call: what was asked for, what the tensors are on, what is installed."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from anl_kernels.backends import gpu_choice
from anl_kernels.backends.compiled import CompiledBackend
from anl_kernels.backends.cpu import library as cpu_library
from anl_kernels.backends.cuda import library as cuda_library
from anl_kernels.interface import Kernels
from anl_kernels.settings import AUTO, settings
from anl_kernels.terms import Terms
from anl_kernels.tracing import forward_mode, recorded_for_others

REFERENCE = "reference"
TRITON = gpu_choice.TRITON
CUDA = gpu_choice.CUDA
CPU = "cpu"
BACKENDS = (TRITON, CUDA, CPU, REFERENCE)

GPU = "cuda"
"""PyTorch's type of device for NVIDIA's and AMD's GPUs."""

_F = TypeVar("_F", bound=Callable[..., Any])


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run the losses called in this context on one backend.

    Args:
        name: "triton", "cuda", "cpu", "reference", or "auto" for the fastest that fits the tensors.

    A backend asked for by name never falls back: a call it cannot serve raises RuntimeError with
    the reason. The setting is a context variable: it holds for the thread or the asyncio task that
    made it, and for tasks that it starts, not for other threads. A backward pass runs on the
    backend of its forward pass, in whatever thread; what ``torch.utils.checkpoint`` computes again
    in autograd's threads needs the setting in its ``context_fn``. Forward-mode derivatives
    (``torch.func.jvp``, ``hessian``) are those of the reference's formulas on every backend.

    Raises:
        ValueError: the name is unknown.
        RuntimeError: the backend cannot run on this machine.

    Example:
        >>> with ak.use_backend("reference"):
        ...     loss = criterion(logits, target)
    """
    if name not in (AUTO, *BACKENDS):
        raise ValueError(f"backend must be one of {', '.join((AUTO, *BACKENDS))}, got {name!r}")
    reason = None if name == AUTO else why_not(name)
    if reason:
        raise RuntimeError(f"backend {name!r} is not available: {reason}")
    previous = settings.backend
    settings.backend = name
    try:
        yield
    finally:
        settings.backend = previous


def choose_backend(
    device_type: str, terms: Terms | None = None, logits: Tensor | None = None, dim: int = 0
) -> str:
    """The backend for tensors on a device and a sum of terms, by name.

    The reference, whatever was asked for, where a forward-mode derivative is taken; and, unless
    another was asked for, in what is recorded for others.

    Args:
        device_type: of the tensors, as PyTorch names it.
        terms: the sum, if it is a loss.
        logits: what it is of, their classes in ``dim``.
        dim: at least 0.

    Raises:
        RuntimeError: the backend asked for cannot run there.
    """
    if forward_mode():
        return REFERENCE
    requested = settings.backend
    if requested == AUTO:
        if recorded_for_others():
            return REFERENCE
        name = auto_backend(device_type, terms, logits, dim)
        if name == REFERENCE and not torch.compiler.is_compiling():
            _warn_of_reference(device_type, terms, _index(logits))
        return name
    reason = _why_not_on(requested, device_type, _index(logits))
    if reason:
        raise RuntimeError(f"backend {requested!r} cannot run on {device_type} tensors: {reason}")
    reason = _why_not_terms(requested, terms)
    if reason:
        raise RuntimeError(f"backend {requested!r} {reason}, or choose ak.use_backend('auto')")
    return requested


def auto_backend(
    device_type: str, terms: Terms | None = None, logits: Tensor | None = None, dim: int = 0
) -> str:
    """What :func:`choose_backend` answers where "auto" is asked for.

    The kernels for the device; the reference where there are none, and for a user's own terms that
    no kernel knows. On a GPU it is the logits that decide which kernels come first
    (:mod:`anl_kernels.backends.gpu_choice`); without them the answer is for most.
    """
    for name in _candidates(device_type, logits, dim):
        if (
            why_not(name) is None
            and _why_not_on(name, device_type, _index(logits)) is None
            and _why_not_terms(name, terms) is None
        ):
            return name
    return REFERENCE


_warned: set[str] = set()


def _warn_of_reference(device_type: str, terms: Terms | None, index: int) -> None:
    """Say once that no kernel runs on a type of device, why, and how one could.

    Not of what is the same everywhere: a user's own terms have no kernel.
    """
    own_terms = terms is not None and not all(term.may_have_kernel for term in terms.terms)
    if device_type not in (CPU, GPU) or device_type in _warned or own_terms:
        return
    names = (CPU,) if device_type == CPU else (TRITON, CUDA)
    reasons = {name: why_not(name) or _why_not_on(name, device_type, index) for name in names}
    if None in reasons.values():
        return
    _warned.add(device_type)
    told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    warnings.warn(
        f"anl_kernels has no kernels for {device_type} tensors here, and runs its reference in "
        f"plain PyTorch, which takes several times as long ({told}). `python -m anl_kernels` says "
        f"what runs; inside ak.use_backend('reference') there is no warning",
        RuntimeWarning,
        stacklevel=2,
    )


def _candidates(device_type: str, logits: Tensor | None, dim: int) -> tuple[str, ...]:
    """The kernels that ``auto`` may take, best first."""
    if device_type == CPU:
        return (CPU,)
    if device_type != GPU:
        return ()
    if logits is None:
        return TRITON, CUDA
    capability = _capability(_index(logits))
    return gpu_choice.in_order(capability, logits.dtype, logits.shape[dim], logits.stride(dim))


def _index(logits: Tensor | None) -> int:
    """Which of the devices of a type."""
    return 0 if logits is None or logits.device.index is None else logits.device.index


def _why_not_on(name: str, device_type: str, index: int) -> str | None:
    if name == TRITON and device_type != GPU and not interpreting():
        return (
            "move logits and target to a GPU, choose ak.use_backend('auto'), or set "
            "TRITON_INTERPRET=1 before Python starts to run its kernels in Triton's (slow) "
            "interpreter"
        )
    if name == CUDA:
        return _why_not_cuda_on(device_type, index)
    if name == CPU and device_type != CPU:
        return "move logits and target to the CPU, or choose ak.use_backend('auto')"
    return None


def _why_not_terms(name: str, terms: Terms | None) -> str | None:
    if terms is None or name == REFERENCE or why_not(name) is not None:
        return None
    unknown = [
        type(term).__name__
        for _, _, term in terms.parts
        if not (term.may_have_kernel and _has_kernel(name, term.functor))
    ]
    if unknown:
        return f"has no kernel for {', '.join(unknown)}: add a functor for it (CONTRIBUTING.md)"
    if name == CUDA and len(terms) > _most_terms():
        return f"takes a sum of up to {_most_terms()} terms, got {len(terms)}: make it two losses"
    return None


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
def _most_terms() -> int:
    return cuda_library.load().max_terms


@_constant
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


@_constant
def _why_not_cuda_on(device_type: str, index: int) -> str | None:
    runs_on = cuda_library.load().device_type
    if device_type != runs_on:
        where = "a GPU" if runs_on == GPU else f"the {runs_on.upper()}"
        return f"move logits and target to {where}, or choose ak.use_backend('auto')"
    return cuda_library.why_not_on(index) if runs_on == GPU else None


@_constant
def why_not(name: str) -> str | None:
    """The reason that a backend cannot run on this machine, or None."""
    if name == CPU:
        return cpu_library.why_not()
    if name == CUDA:
        return cuda_library.why_not()
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
def load_backend(name: str) -> Kernels:
    """The kernels of a backend that can run on this machine."""
    if name == TRITON:
        from anl_kernels.backends.triton import launch

        return launch
    if name == CPU:
        module = cpu_library.load()
        return CompiledBackend(
            torch.ops.anl_kernels_cpu, module.functor_names(), module.dense_functors()
        )
    if name == CUDA:
        module = cuda_library.load()
        return CompiledBackend(
            torch.ops.anl_kernels_cuda, module.functor_names(), module.dense_functors()
        )
    raise ValueError(f"{name!r} is not a kernel backend")
