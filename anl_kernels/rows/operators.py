"""Which operators compute rows: a backend's, or, where ranks share the classes, those around it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.compiler import is_compiling

from anl_kernels.backends.choice import CPU, CUDA, REFERENCE, TRITON, load_backend
from anl_kernels.backends.operators import ROWS, eager, namespace_of
from anl_kernels.backends.reference import ReferenceKernels
from anl_kernels.distributed.class_shards import ClassShards
from anl_kernels.distributed.sharded_kernels import ShardedKernels
from anl_kernels.interface import REQUEST_SCHEMA, Backend, RowRequest, empty_outputs
from anl_kernels.layout import empty_like_rows
from anl_kernels.operators import fake, operator
from anl_kernels.tracing import PLAIN, transforming


class Where(NamedTuple):
    """Who computes: chosen when the loss is called, and kept for its backward pass."""

    backend: str
    group: str = ""
    """Name of the process group whose ranks share the classes; empty if they are all here."""
    shard_sizes: Sequence[int] = ()
    """How many of them each rank has."""

    @classmethod
    def of(cls, backend: str, shards: ClassShards | None) -> Where:
        """A backend, on classes that lie so."""
        if shards is None:
            return _HERE[backend]
        return cls(backend, shards.group.group_name, list(shards.sizes))

    @property
    def shards(self) -> ClassShards | None:
        """How the classes are shared, if they are."""
        return ClassShards.named(self.group, self.shard_sizes) if self.group else None

    def load(self) -> Backend:
        """The backend, for callers that walk over chunks of rows."""
        shards = self.shards
        if shards is None:
            return load_backend(self.backend)
        if self.backend == REFERENCE:
            return ReferenceKernels(shards)
        return ShardedKernels(load_backend(self.backend), shards)

    def call(self, name: str, *args: Any) -> Any:
        """Call an operator of rows."""
        if self.group:
            return getattr(torch.ops.anl_kernels, f"sharded_{name}")(*args, *self)
        if is_compiling() or self.backend not in eager:
            load_backend(self.backend)
        # A subclass is asked by torch.ops alone what it makes of a call.
        here = _NAMESPACES if is_compiling() or type(args[0]) not in PLAIN else eager
        return getattr(here[self.backend], name)(*args)

    def row_loss(
        self,
        logits: Tensor,
        target: Tensor,
        row_scale: Tensor,
        term_weights: Tensor | None,
        request: RowRequest,
    ) -> Sequence[Tensor]:
        """What the request names."""
        name = "row_loss_" if request.overwrites else "row_loss"
        return self.call(name, logits, target, row_scale, term_weights, *request)

    def recorded_row_loss(self, *args: Any) -> Sequence[Tensor]:
        """What the request names but ``grad``, of which the loss has a history: csrc/autograd.h."""
        *tensors, request = args
        kept = kept_request(self.backend, request)
        return eager[self.backend].recorded_row_loss(*tensors, kept)

    def has_function(self, logits: Tensor) -> bool:
        """Whether there is an autograd Function in C++ for a call with these logits."""
        compiled = self.backend in _COMPILED and not self.group
        return compiled and type(logits) in PLAIN and not transforming()


_COMPILED = CPU, CUDA


def kept_request(backend: str, request: RowRequest) -> Any:
    """A request as C++ keeps it."""
    functors, numbers, _, *rest = request
    return eager[backend].Request(functors, numbers, *rest)


_NAMESPACES = {
    name: getattr(torch.ops, namespace_of(name)) for name in (CPU, CUDA, TRITON, REFERENCE)
}
_HERE = {name: Where(name) for name in _NAMESPACES}
WHERE_SCHEMA = "str backend, str group, int[] shard_sizes"
_NUM_WHERE = len(Where._fields)


def _split(args: tuple[Any, ...]) -> tuple[RowRequest, Backend]:
    """The request and who is asked, as they follow an operator's tensors."""
    return RowRequest(*args[:-_NUM_WHERE]), Where(*args[-_NUM_WHERE:]).load()


@operator(
    f"sharded_row_loss({ROWS}, Tensor? term_weights, {REQUEST_SCHEMA}, {WHERE_SCHEMA}) -> Tensor[]"
)
def sharded_row_loss(
    logits: Tensor, target: Tensor, row_scale: Tensor, term_weights: Tensor | None, *args: Any
) -> list[Tensor]:
    """``row_loss`` of logits of which each rank has some classes; all ranks call it together."""
    request, backend = _split(args)
    outputs = backend.row_loss(logits, target, row_scale, term_weights, request)
    return [tensor for tensor in outputs if tensor is not None]


@fake("sharded_row_loss")
def _(logits: Tensor, target: Tensor, *args: Any) -> list[Tensor]:
    outputs = empty_outputs(logits, target, RowRequest(*args[2:-_NUM_WHERE]))
    return [tensor for tensor in outputs if tensor is not None]


@operator(f"sharded_row_grad({ROWS}, Tensor saved, {REQUEST_SCHEMA}, {WHERE_SCHEMA}) -> Tensor")
def sharded_row_grad(logits: Tensor, *args: Any) -> Tensor:
    """``row_grad`` of the classes here; no exchange."""
    grad = empty_like_rows(logits)
    sharded_row_grad_into(grad, logits, *args)
    return grad


@fake("sharded_row_grad")
def _(logits: Tensor, *args: Any) -> Tensor:
    return empty_like_rows(logits)


@operator(
    f"sharded_row_grad_into(Tensor(a!) grad, {ROWS}, Tensor saved, {REQUEST_SCHEMA}, "
    f"{WHERE_SCHEMA}) -> ()"
)
def sharded_row_grad_into(
    grad: Tensor, logits: Tensor, target: Tensor, row_scale: Tensor, saved: Tensor, *args: Any
) -> None:
    """:func:`sharded_row_grad`, written to ``grad``, which may be the logits."""
    torch.autograd.graph.increment_version(grad)
    request, backend = _split(args)
    backend.row_grad_into(grad, logits, target, row_scale, saved, request)


@fake("sharded_row_grad_into")
def _(*args: Any) -> None:
    return None
