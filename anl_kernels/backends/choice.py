"""Which backend runs a call: what is asked for, what the tensors are on, what is installed."""

from __future__ import annotations

import importlib
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from threading import Lock
from types import ModuleType
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from anl_kernels.backends.compiled import CompiledBackend
from anl_kernels.backends.operators import complete, define, namespace_of
from anl_kernels.backends.reference import ReferenceKernels
from anl_kernels.backends.triton.plan import TILE_LIMIT
from anl_kernels.interface import Kernels
from anl_kernels.settings import AUTO, interpreting, settings
from anl_kernels.terms import Terms
from anl_kernels.terms.encoding import BY_ROW, functors_of
from anl_kernels.tracing import only_formulas, recorded_for_others

TRITON, CUDA, CPU, REFERENCE = "triton", "cuda", "cpu", "reference"
GPU = "cuda"  # PyTorch's type of device, of AMD's GPUs too
OLDEST = (8, 0)  # the compute capability that Triton compiles for, and that the CUDA kernels need
BUILD = "pip install --force-reinstall --no-deps -v ."
CACHE_VARIABLE = "ANL_KERNELS_CPU_CACHE_MB"

_F = TypeVar("_F", bound=Callable[..., Any])


def _once(function: _F) -> _F:
    """Ask once for what never changes in a process; let Dynamo call it, not trace it.

    Dynamo may not trace into a cache or an import. The mark is that of
    ``torch.compiler.assume_constant_result``, which would import the whole compiler, and Triton.
    """
    cached = lru_cache(function)

    def ask(*args: Any) -> Any:  # Dynamo sees the mark on Python's own functions only
        return cached(*args)

    ask._dynamo_marked_constant = True  # type: ignore[attr-defined]
    ask.cache_clear = cached.cache_clear  # type: ignore[attr-defined]
    return cast(_F, ask)


@lru_cache
def extension(name: str) -> ModuleType:
    """The module of facts of kernels in C++ or CUDA; its import registers their operators.

    The test suite puts another one in the place of the CUDA kernels', which a CPU emulates.

    Raises:
        ImportError: it was not built, or not for this PyTorch.
    """
    module = importlib.import_module(f"anl_kernels._{name}")
    if name == CPU:
        kernels = importlib.import_module(f"anl_kernels._cpu_{instruction_set()}")
        module.set_kernels(kernels.kernels)
        limit = os.environ.get(CACHE_VARIABLE, "")
        if limit.isdecimal():
            module.set_cache_limit(min(int(limit) << 20, 1 << 62))
        elif limit:
            told = f"{CACHE_VARIABLE} must be a whole number of MiB, got {limit!r}: not used"
            warnings.warn(told, stacklevel=2)
    return module


def instruction_set() -> str:
    """The instruction set of the CPU kernels that run here: what PyTorch says of the processor.

    ``ATEN_CPU_CAPABILITY=avx2`` (or ``default``) in the environment chooses lesser ones, in
    PyTorch and here.
    """
    name = torch.backends.cpu.get_cpu_capability().lower()
    return name if name in ("avx2", "avx512") else "default"


class Backend(NamedTuple):
    """What a backend says of itself."""

    why_not: Callable[[], str | None]
    """The reason that it cannot run on this machine, or None."""
    device_type: Callable[[], str | None]
    """Of the tensors that it runs on; None if that is any. Asked of one that can run."""
    load: Callable[[], Kernels]
    """Its kernels, of one that can run."""


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
    return _why_no_gpu(_why_triton_not_for)


def _why_triton_not_for(index: int) -> str | None:
    """The reason that Triton cannot compile for a GPU, or None."""
    if interpreting() or torch.version.hip or _capability(index) >= OLDEST:
        return None
    return f"{_too_old(index)}; ak.use_backend('auto') takes plain PyTorch there"


def _too_old(index: int) -> str:
    has, least = ("{}.{}".format(*pair) for pair in (_capability(index), OLDEST))
    return f"the GPU has compute capability {has}, and kernels need {least} or newer"


def _why_no_gpu(why_not_for: Callable[[int], str | None]) -> str | None:
    """The reason that none of the GPUs will do, or None."""
    reasons = [why_not_for(index) for index in range(torch.cuda.device_count())]
    return None if None in reasons or not reasons else reasons[0]


def _triton() -> Kernels:
    from anl_kernels.backends.triton import launch

    define(TRITON, launch)
    complete(TRITON)
    return launch


def _reference() -> Kernels:
    kernels: Any = ReferenceKernels()
    define(REFERENCE, kernels)
    complete(REFERENCE)
    return kernels


def _why_not_cuda() -> str | None:
    if torch.version.hip:
        return "the CUDA kernels are for NVIDIA GPUs, and this PyTorch is for ROCm"
    try:
        module = extension(CUDA)
    except ImportError as error:
        if torch.version.cuda is None:
            lacks, remedy = "without CUDA", "install one with it, then"
            return f"this PyTorch ({torch.__version__}) is {lacks}; {remedy} FORCE_CUDA=1 {BUILD}"
        return (
            f"the CUDA extension cannot be loaded ({error}); build it with nvcc, of the CUDA "
            f"{torch.version.cuda} that this PyTorch has: FORCE_CUDA=1 {BUILD}"
        )
    if module.device_type != GPU:
        return None
    if not torch.cuda.is_available():
        return "no CUDA device is visible"
    return _why_no_gpu(_why_not_compiled_for)


@_once
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


def _why_not_compiled_for(index: int) -> str | None:
    """The reason that the CUDA kernels cannot run on a GPU, or None."""
    capability, architectures = _capability(index), extension(CUDA).architectures()
    has = "{}.{}".format(*capability)
    if capability < OLDEST:
        return _too_old(index)
    if any(_runs(name, capability) for name in architectures.split(";")):
        return None
    return (
        f"the GPU has compute capability {has}, the CUDA kernels are compiled for {architectures}; "
        f"build them for it: TORCH_CUDA_ARCH_LIST={has} FORCE_CUDA=1 {BUILD}"
    )


def _runs(architecture: str, capability: tuple[int, int]) -> bool:
    """Machine code runs on later GPUs of its generation, PTX on all later ones."""
    match = re.fullmatch(r"(\d+)\.(\d+)(\w?)(\+PTX)?", architecture)
    if not match:  # a name, such as Hopper: whoever built it will know
        return True
    compiled = int(match[1]), int(match[2])
    if match[3]:  # 9.0a runs on 9.0, and nowhere else
        return capability == compiled
    return compiled <= capability and (bool(match[4]) or compiled[0] == capability[0])


def _why_not_cpu() -> str | None:
    try:
        extension(CPU)
    except ImportError as error:
        return (
            f"the C++ extension cannot be loaded ({error}); build it with a C++ compiler and "
            f"this PyTorch: in a checkout, {BUILD}"
        )
    return None


def _compiled(name: str) -> CompiledBackend:
    module, operators = extension(name), getattr(torch.ops, namespace_of(name))
    complete(name, module)
    return CompiledBackend(operators, module.functor_names(), module.dense_functors())


BACKENDS = {
    TRITON: Backend(_why_not_triton, lambda: None if interpreting() else GPU, _triton),
    CUDA: Backend(_why_not_cuda, lambda: extension(CUDA).device_type, lambda: _compiled(CUDA)),
    CPU: Backend(_why_not_cpu, lambda: CPU, lambda: _compiled(CPU)),
    REFERENCE: Backend(lambda: None, lambda: None, _reference),
}

KERNELS_FOR = {CPU: (CPU,), GPU: (TRITON, CUDA)}
"""Those that "auto" may take, by the type of device; for most rows the better one first."""


@_once
def why_not(name: str, device_type: str | None = None, index: int = 0) -> str | None:
    """The reason that a backend cannot run on this machine, or on one of its devices, or None."""
    backend = BACKENDS[name]
    if device_type is None:
        return backend.why_not()
    if reason := why_not(name):
        return reason
    runs_on = backend.device_type()
    if runs_on in (device_type, None):
        return _why_not_device(name, device_type, index)
    where = "a GPU" if runs_on == GPU else "the CPU"
    reason = f"move logits and target to {where}, or choose ak.use_backend('auto')"
    if name == TRITON:
        reason += ", or set TRITON_INTERPRET=1 before Python starts for Triton's slow interpreter"
    return reason


def _why_not_device(name: str, device_type: str, index: int) -> str | None:
    """The reason that a backend cannot run on one of the GPUs that it is for, or None."""
    if device_type == GPU and name == CUDA:
        return _why_not_compiled_for(index)
    if device_type == GPU and name == TRITON:
        return _why_triton_not_for(index)
    return None


_loading = Lock()


@_once
def load_backend(name: str) -> Kernels:
    """The kernels of a backend that can run on this machine."""
    with _loading:  # threads may ask at once, and operators are defined once
        return _loaded(name)


@lru_cache
def _loaded(name: str) -> Kernels:
    if name not in BACKENDS:
        raise ValueError(f"{name!r} is not a kernel backend")
    return BACKENDS[name].load()


def empty_cpu_cache() -> None:
    """Give the memory of released gradients back to the system.

    The CPU kernels keep it for the next gradients, up to an eighth of the machine's memory or
    ``ANL_KERNELS_CPU_CACHE_MB`` in the environment.
    """
    if why_not(CPU) is None:
        extension(CPU).empty_cache()


class Rule(NamedTuple):
    """Rows that the CUDA kernels serve better than Triton's; classes are neighbours in memory.

    On GPUs of a compute capability from ``since`` to below ``before``, of more classes than
    ``above_classes``, and no longer than ``most_bytes``.
    """

    since: tuple[int, int]
    before: tuple[int, int]
    dtypes: tuple[torch.dtype, ...]
    above_classes: int
    most_bytes: int
    reason: str

    def holds(self, capability: tuple[int, int], logits: Tensor, dim: int | None) -> bool:
        """Whether rows of logits, on a GPU of this compute capability, are the rule's."""
        dim = min(logits.dim() - 1, 1) if dim is None else dim
        num_classes, dtype = logits.shape[dim], logits.dtype
        return (
            self.since <= capability < self.before
            and dtype in self.dtypes
            and num_classes > self.above_classes
            and num_classes * dtype.itemsize <= self.most_bytes
            and logits.stride(dim) == 1
        )


RULES = (
    Rule(
        since=(9, 0),
        before=(12, 0),  # which has 100 KiB of shared memory, not 228
        dtypes=(torch.float32, torch.bfloat16, torch.float16),
        above_classes=TILE_LIMIT,
        most_bytes=16 * (200 << 10),
        reason=(
            "a cluster of 16 blocks holds the row in shared memory, 200 KiB in each, and reads it "
            "once; too long for the registers of one Triton program, it is read two or three times "
            "there (argued from bytes, not measured)"
        ),
    ),
)
"""Where none holds Triton's come first: a row is read once there too, or by neither. What is
measured takes the place of an argument."""


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
    (``torch.func.jvp``, ``hessian``), and transforms of ``torch.func`` inside ``torch.compile``,
    are those of the reference's formulas on every backend.

    Raises:
        ValueError: the name is unknown.
        RuntimeError: the backend cannot run on this machine.

    Example:
        >>> with ak.use_backend("reference"):
        ...     loss = criterion(logits, target)
    """
    names = AUTO, TRITON, CUDA, CPU, REFERENCE
    if name not in names:
        raise ValueError(f"backend must be one of {', '.join(names)}, got {name!r}")
    if name != AUTO and (reason := why_not(name)):
        raise RuntimeError(f"backend {name!r} is not available: {reason}")
    previous = settings.backend
    settings.backend = name
    try:
        yield
    finally:
        settings.backend = previous


def choose_backend(logits: Tensor, terms: Terms | None = None, dim: int | None = None) -> str:
    """The backend for logits and a sum of terms, by name.

    The one asked for. Where that is "auto", the kernels for the device, of which ``RULES`` say what
    comes first on a GPU; and the reference where there are none, for a user's own terms that no
    kernel knows, and in what is recorded for others. Whatever was asked for, the reference where
    only formulas have the derivative.

    Args:
        logits: floating, on any device.
        terms: the sum, if it is a loss.
        dim: of the classes, at least 0; if None 1, or 0 of one row.

    Raises:
        RuntimeError: the backend asked for cannot run there.
    """
    requested = settings.backend
    if requested == REFERENCE or only_formulas():
        return REFERENCE
    device_type = CPU if logits.is_cpu else logits.device.type  # which takes four times as long
    on_gpu = device_type == GPU
    index = logits.device.index or 0 if on_gpu else 0
    functors = "" if terms is None else functors_of(terms)
    if requested != AUTO:
        asked = f"backend {requested!r}"
        if reason := why_not(requested, device_type, index):
            raise RuntimeError(f"{asked} cannot run on {device_type} tensors: {reason}")
        if reason := _why_not_sum(requested, functors):
            raise RuntimeError(f"{asked} {reason}, or choose ak.use_backend('auto')")
        return requested
    if recorded_for_others():
        return REFERENCE
    cuda_first = on_gpu and any(rule.holds(_capability(index), logits, dim) for rule in RULES)
    name = best(device_type, index, cuda_first, functors)
    if name == REFERENCE and not torch.compiler.is_compiling():
        _warn_of_reference(device_type, index, functors)
    return name


@_once
def best(device_type: str, index: int = 0, cuda_first: bool = False, functors: str = "") -> str:
    """The best of the kernels that can run, or the reference."""
    names = KERNELS_FOR.get(device_type, ())
    for name in reversed(names) if cuda_first else names:
        if why_not(name, device_type, index) is None and _why_not_sum(name, functors) is None:
            return name
    return REFERENCE


@_once
def _why_not_sum(name: str, functors: str) -> str | None:
    """The reason that kernels, which can run, cannot compute a sum of terms, or None."""
    knows = load_backend(name).knows  # defines the operators, which are called next
    if not functors:
        return None
    terms = [term.removesuffix(BY_ROW).split(":") for term in functors.split(",")]
    if unknown := [term for term, functor in terms if not (functor and knows(functor))]:
        return f"has no kernel for {', '.join(unknown)}: add a functor for it (CONTRIBUTING.md)"
    if name == CUDA and len(terms) > (most := extension(CUDA).max_terms):
        return f"takes a sum of up to {most} terms, got {len(terms)}: make it two losses"
    return None


_warned: set[str] = set()


def _warn_of_reference(device_type: str, index: int, functors: str) -> None:
    """Say once that no kernel runs on a type of device, why, and how one could.

    Not of what is the same everywhere: a user's own terms have no kernel.
    """
    reasons = {n: why_not(n, device_type, index) for n in KERNELS_FOR.get(device_type, ())}
    own_terms = ":," in f"{functors.replace(BY_ROW, '')},"
    if device_type in _warned or own_terms or not reasons or None in reasons.values():
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
