"""The operators ``torch.ops.anl_kernels.*``: what the compiler, the exporter and opcheck see.

An operator takes tensors and plain numbers. A sum of terms travels as ``Terms.names`` and
``Terms.params``, or a tensor in the place of these where they change between calls of one graph
(:func:`encode`); the backend by name, chosen when the loss is called, so that the backward pass
(another thread, another time) uses the same one. Their gradients are in anl_kernels/autograd.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from anl_kernels.backends.reference import ReferenceKernels
from anl_kernels.backends.selection import REFERENCE, load_backend
from anl_kernels.distributed.kernels import ShardedKernels
from anl_kernels.distributed.shards import ClassShards
from anl_kernels.interface import (
    Backend,
    RowOutputs,
    RowRequest,
    empty_outputs,
    tensors_only,
)
from anl_kernels.layout import empty_like_rows
from anl_kernels.operators import fake, operator
from anl_kernels.terms import CE, Terms, decode_terms
from anl_kernels.terms.symbols import as_tensor, known


class RowSpec(NamedTuple):
    """The arguments of the row operators that are not tensors, in the operators' order."""

    names: str
    """``Terms.names``."""
    params: list[float]
    """``Terms.params``."""
    numbers: Tensor | None
    """(P,) float64 on the CPU in the place of the params, which are empty then, or None."""
    ignore_index: int
    backend: str
    reduce: bool = True
    """One loss, the sum over rows; else one for each row."""
    write_grad: bool = False
    """The one-pass form: the gradient comes with the loss. Else numbers to save of rows come, which
    ``row_grad`` makes the gradient from."""
    inplace: bool = False
    """The gradient may take the place of the logits."""
    aux: bool = False
    """Also term losses, lse, p_y and argmax."""
    probs: bool = False
    """Also the softmax."""
    group: str = ""
    """Name of the process group whose ranks share the classes; empty if they are all here."""
    shard_sizes: Sequence[int] = ()
    """How many of them each rank has."""

    @property
    def shards(self) -> ClassShards | None:
        """How the classes are shared, if they are."""
        return ClassShards.named(self.group, self.shard_sizes) if self.group else None

    def load(self) -> Backend:
        """The backend, with an exchange between ranks around it where they share the classes."""
        return _load(self.backend, self.shards)

    @property
    def terms(self) -> Terms:
        """The sum of terms, its tensor weights apart."""
        params = self.params if self.numbers is None else self.numbers.tolist()
        return decode_terms(self.names, tuple(params))

    @property
    def request(self) -> RowRequest:
        """What a backend is asked."""
        return self.request_of(self.terms)

    @property
    def outline(self) -> RowRequest:
        """The same of as many terms, whichever: a fake kernel has no numbers to read."""
        count = len(self.names.split(","))
        return self.request_of(Terms((CE(),) * count, (1.0,) * count, (None,) * count))

    def request_of(self, terms: Terms) -> RowRequest:
        """What a backend is asked, the terms at hand."""
        return RowRequest(
            terms,
            self.ignore_index,
            reduce=self.reduce,
            write_grad=self.write_grad,
            inplace=self.inplace,
            write_saved=not self.write_grad,
            aux=self.aux,
            probs=self.probs,
        )


def _load(backend: str, shards: ClassShards | None = None) -> Backend:
    if backend == REFERENCE:
        return ReferenceKernels(shards)
    kernels = load_backend(backend)
    return kernels if shards is None else ShardedKernels(kernels, shards)


SPEC = (
    "str names, float[] params, Tensor? numbers, int ignore_index, str backend, bool reduce, "
    "bool write_grad, bool inplace, bool aux, bool probs, str group, int[] shard_sizes"
)
_RETURNS = "(" + ", ".join(f"Tensor {name}" for name in RowOutputs._fields) + ")"


def encode(terms: Terms) -> tuple[str, list[float], Tensor | None]:
    """A sum of terms as the first fields of :class:`RowSpec`.

    In compiled code a number that changes from call to call, such as an exponent on a schedule, is
    a symbol. Measured on torch 2.13, for aot_eager and inductor: a symbol in ``params`` is made a
    constant, which compiles every value anew and fails at the ninth; so is one in ``torch.tensor``,
    ``scalar_tensor`` or ``full``. Its product with a tensor (:func:`as_tensor`) stays one graph,
    and inductor passes the graph's own input for it. Numbers that do not change stay in ``params``:
    eager calls make no tensor of them, and a CUDA graph can hold the operator, whose numbers on
    the host would have it run outside.
    """
    params = list(terms.params)
    are_known = [known(number) for number in params]
    if all(are_known):
        return terms.names, params, None
    # An operator, and no torch.stack, for which inductor would compile a kernel in C++.
    numbers = torch.ops.anl_kernels.pack_params(
        [as_tensor(n) for n, is_known in zip(params, are_known, strict=True) if not is_known],
        [n if is_known else math.nan for n, is_known in zip(params, are_known, strict=True)],
    )
    return terms.names, [], numbers


@operator("pack_params(Tensor[] unknown, float[] params) -> Tensor")
def pack_params(unknown: list[Tensor], params: list[float]) -> Tensor:
    """(P,) float64 on the CPU: the params, with 0-d tensors in the places of those that are NaN."""
    rest = iter(unknown)
    numbers = [float(next(rest)) if math.isnan(number) else number for number in params]
    return torch.tensor(numbers, dtype=torch.float64, device="cpu")


@fake("pack_params")
def _(unknown: list[Tensor], params: list[float]) -> Tensor:
    return torch.empty(len(params), dtype=torch.float64, device="cpu")


@operator(
    "row_loss(Tensor logits, Tensor target, Tensor row_scale, Tensor? term_weights, "
    f"{SPEC}) -> {_RETURNS}"
)
def row_loss(
    logits: Tensor, target: Tensor, row_scale: Tensor, term_weights: Tensor | None, *spec: Any
) -> tuple[Tensor, ...]:
    """Loss of the rows times ``row_scale`` (0-d or of the target's shape); see :class:`RowSpec`."""
    options = RowSpec(*spec)
    backend = options.load()
    outputs = backend.row_loss(logits, target, row_scale, term_weights, options.request)
    return tensors_only(outputs, logits)


@fake("row_loss")
def _fake_row_loss(
    logits: Tensor, target: Tensor, row_scale: Tensor, term_weights: Tensor | None, *spec: Any
) -> tuple[Tensor, ...]:
    return tuple(empty_outputs(logits, target, RowSpec(*spec).outline))


@operator(
    "row_loss_(Tensor(a!) logits, Tensor target, Tensor row_scale, Tensor? term_weights, "
    f"{SPEC}) -> {_RETURNS}"
)
def row_loss_(logits: Tensor, *args: Any) -> tuple[Tensor, ...]:
    """:func:`row_loss` with ``write_grad`` and ``inplace``: the gradient overwrites the logits."""
    torch.autograd.graph.increment_version(logits)
    return row_loss(logits, *args)


fake("row_loss_")(_fake_row_loss)


_ROW_GRAD_ARGS = f"Tensor target, Tensor row_scale, Tensor saved, {SPEC}"


@operator(f"row_grad(Tensor logits, {_ROW_GRAD_ARGS}) -> Tensor")
def row_grad(
    logits: Tensor, target: Tensor, row_scale: Tensor, saved: Tensor, *spec: Any
) -> Tensor:
    """The gradient out of what ``row_loss`` saved, times ``row_scale`` before it is rounded."""
    grad = RowSpec(*spec).load().empty_like_rows(logits)
    _row_grad_into(grad, logits, target, row_scale, saved, spec)
    return grad


@fake("row_grad")
def _(logits: Tensor, *args: Any) -> Tensor:
    return empty_like_rows(logits)


@operator(f"row_grad_(Tensor(a!) logits, {_ROW_GRAD_ARGS}) -> ()")
def row_grad_(logits: Tensor, target: Tensor, row_scale: Tensor, saved: Tensor, *spec: Any) -> None:
    """:func:`row_grad`, written over the logits."""
    torch.autograd.graph.increment_version(logits)
    _row_grad_into(logits, logits, target, row_scale, saved, spec)


def _row_grad_into(
    grad: Tensor,
    logits: Tensor,
    target: Tensor,
    row_scale: Tensor,
    saved: Tensor,
    spec: tuple[Any, ...],
) -> None:
    options = RowSpec(*spec)
    backend = options.load()
    backend.row_grad(grad, logits, target, row_scale, saved, options.request)


@fake("row_grad_")
def _fake_mutation(*args: Any) -> None:
    return None


@operator("scale_(Tensor(a!) tensor, Tensor factor, str backend) -> ()")
def scale_(tensor: Tensor, factor: Tensor, backend: str) -> None:
    """Multiply in place by a 0-d tensor; costs nothing when it is 1, and never asks the host."""
    _load(backend).scale_(tensor, factor)


fake("scale_")(_fake_mutation)


@operator("softmax(Tensor logits, str backend) -> Tensor")
def softmax(logits: Tensor, backend: str) -> Tensor:
    """Softmax over the class dimension: 1, or 0 for one row."""
    return load_backend(backend).softmax(logits)


@fake("softmax")
def _(logits: Tensor, backend: str) -> Tensor:
    return torch.empty_like(logits)


@operator("softmax_backward(Tensor grad, Tensor probs, str backend) -> Tensor")
def softmax_backward(grad: Tensor, probs: Tensor, backend: str) -> Tensor:
    """Gradient with respect to the logits of :func:`softmax`."""
    return load_backend(backend).softmax_backward(grad, probs)


@fake("softmax_backward")
def _(grad: Tensor, probs: Tensor, backend: str) -> Tensor:
    return torch.empty_like(probs)
