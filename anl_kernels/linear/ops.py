"""The operators ``torch.ops.anl_kernels.linear_*``: head and loss over chunks of rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from anl_kernels.distributed.collectives import add_up_
from anl_kernels.interface import RowOutputs, empty_outputs, scaled_loss
from anl_kernels.labels import is_ignored
from anl_kernels.linear.chunks import Chunk, chunks_of
from anl_kernels.linear.products import Head, HiddenGradient, WeightGradient
from anl_kernels.operators import fake, operator
from anl_kernels.ops import SPEC, RowSpec


class HeadSpec(NamedTuple):
    """What an operator is told of the head, in its order; :class:`RowSpec` comes before."""

    softcap: float
    """Bound on the logits; 0 for none."""
    chunk_bytes: int
    """Memory for a chunk's logits; 0 for the device's default."""
    skip_ignored: bool
    """No products for ignored rows, whose results are 0; a GPU is waited for."""
    dtype: torch.dtype
    """Of the logits, and of the products' factors."""
    sum_dtype: torch.dtype
    """In which the gradients of weight and bias are summed over chunks."""
    num_classes: int
    """Of the rows of the weight that are here: what comes after is padding, with gradient 0."""
    needs_hidden: bool = False
    needs_weight: bool = False
    needs_bias: bool = False


_HEAD_SPEC = (
    "float softcap, int chunk_bytes, bool skip_ignored, ScalarType dtype, ScalarType sum_dtype, "
    "int num_classes, bool needs_hidden, bool needs_weight, bool needs_bias"
)
_TENSORS = "Tensor hidden, Tensor weight, Tensor? bias, Tensor target, Tensor row_scale"
_GRADIENTS = "Tensor grad_hidden, Tensor grad_weight, Tensor grad_bias"
ROW_OUTPUTS = ("row_losses", "saved", "term_losses", "lse", "p_y", "argmax")
"""The fields of RowOutputs that are numbers of rows."""
_ROW_TENSORS = ", ".join(f"Tensor {name}" for name in ROW_OUTPUTS)


class Specs(NamedTuple):
    """Both parts of an operator's arguments that are no tensors."""

    rows: RowSpec
    head: HeadSpec

    @classmethod
    def of(cls, args: tuple[Any, ...]) -> Specs:
        """As they follow an operator's tensors."""
        count = len(RowSpec._fields)
        return cls(RowSpec(*args[:count]), HeadSpec(*args[count:]))


@operator(
    f"linear_loss({_TENSORS}, Tensor? term_weights, {SPEC}, {_HEAD_SPEC}) -> "
    f"(Tensor loss, {_ROW_TENSORS}, {_GRADIENTS})"
)
def linear_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    row_scale: Tensor,
    term_weights: Tensor | None,
    *args: Any,
) -> tuple[Tensor, ...]:
    """Loss of the rows that the head makes of (N, D) ``hidden``, times ``row_scale``.

    In the one-pass form (``write_grad``) with the gradients of hidden, weight and bias, as far as
    they are needed; else with partials, which ``linear_grad`` makes them from.
    """
    specs = Specs.of(args)
    request = specs.rows.request._replace(reduce=False, inplace=True)
    walk = Walk(hidden, weight, bias, target, specs, gradients=request.write_grad)
    outputs = _row_outputs(hidden, target, specs)

    def take(chunk: Chunk, z: Tensor) -> None:
        y, scale = chunk.of(target), _rows_of(row_scale, chunk)
        made = walk.kernels.row_loss(z, y, scale, term_weights, request)
        for name in ROW_OUTPUTS:
            into = getattr(outputs, name)
            if into.numel():
                chunk.put(into, getattr(made, name))

    walk.over_chunks(take)
    loss = scaled_loss(outputs.row_losses, target, row_scale, specs.rows.request)
    return loss, *(getattr(outputs, name) for name in ROW_OUTPUTS), *walk.gradients()


@fake("linear_loss")
def _(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    row_scale: Tensor,
    *args: Any,
) -> tuple[Tensor, ...]:
    specs = Specs.of(args[1:])
    outputs = _row_outputs(hidden, target, specs)
    grads = _empty_gradients(hidden, weight, bias, specs.head, specs.rows.write_grad)
    return outputs.loss, *(getattr(outputs, name) for name in ROW_OUTPUTS), *grads


@operator(f"linear_grad({_TENSORS}, Tensor saved, {SPEC}, {_HEAD_SPEC}) -> ({_GRADIENTS})")
def linear_grad(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    row_scale: Tensor,
    saved: Tensor,
    *args: Any,
) -> tuple[Tensor, ...]:
    """The gradients out of what ``linear_loss`` saved; the logits are computed once more.

    ``row_scale`` multiplies a row's gradient before it is rounded.
    """
    specs = Specs.of(args)
    walk = Walk(hidden, weight, bias, target, specs, gradients=True)

    def take(chunk: Chunk, z: Tensor) -> None:
        y, scale = chunk.of(target), _rows_of(row_scale, chunk)
        walk.kernels.row_grad(z, z, y, scale, chunk.of(saved), specs.rows.request)

    walk.over_chunks(take)
    return walk.gradients()


@fake("linear_grad")
def _(hidden: Tensor, weight: Tensor, bias: Tensor | None, *args: Any) -> tuple[Tensor, ...]:
    return _empty_gradients(hidden, weight, bias, Specs.of(args[3:]).head, True)


class Walk:
    """Takes the chunks of a batch one after the other, their logits in one piece of memory."""

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        specs: Specs,
        gradients: bool,
    ) -> None:
        spec = specs.head
        self.specs = specs
        self.kernels = specs.rows.load()
        classes = slice(spec.num_classes)
        here = weight[classes], None if bias is None else bias[classes]
        self.head = Head(*here, spec.softcap, spec.dtype)
        self._hidden, self._given_weight, self._given_bias = hidden, weight, bias
        self._target, self._makes_gradients = target, gradients
        self._chunks = chunks_of(
            target, specs.rows.ignore_index, spec.skip_ignored, self._row_bytes(), spec.chunk_bytes
        )
        self._of_hidden: HiddenGradient | None = None
        self._of_weight: WeightGradient | None = None
        self._of_bias: Tensor | None = None
        if gradients:
            self._make_room(target.numel())

    def _room(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return self.kernels.empty_like_rows(self._hidden.new_empty((), dtype=dtype).expand(shape))

    def _make_room(self, num_rows: int) -> None:
        spec, weight, bias = self.specs.head, self._given_weight, self._given_bias
        all_rows = sum(map(len, self._chunks)) == num_rows
        # What is one product is rounded once, to where it goes.
        sum_dtype = spec.sum_dtype if len(self._chunks) > 1 else weight.dtype
        if spec.needs_hidden:
            self._of_hidden = HiddenGradient(self._hidden, all_rows)
        if spec.needs_weight:
            room = (
                self._room(weight.shape, sum_dtype)
                if weight.is_contiguous()
                else torch.empty_like(weight, dtype=sum_dtype)
            )
            self._of_weight = WeightGradient(room, spec.num_classes)
        if spec.needs_bias and bias is not None:
            self._of_bias = torch.zeros_like(bias, dtype=spec.sum_dtype)

    def _row_bytes(self) -> int:
        """Of a row of logits, on the rank that has most of them: all ranks walk in step."""
        shards = self.specs.rows.shards
        classes = self.specs.head.num_classes if shards is None else max(shards.sizes)
        return max(1, classes) * self.specs.head.dtype.itemsize

    def over_chunks(self, take: Callable[[Chunk, Tensor], None]) -> None:
        """Hand over each chunk's (n, K) logits; where gradients are made, theirs replaces them."""
        if not self._chunks:
            return
        spec = self.specs.head
        most = max(map(len, self._chunks))
        memory = self._room((most, spec.num_classes), spec.dtype)
        tanhs = torch.empty_like(memory) if spec.softcap and self._makes_gradients else None
        # A backward pass may run where the forward pass did not: spec.dtype says all of it.
        with torch.no_grad(), torch.autocast(memory.device.type, enabled=False):
            for chunk in self._chunks:
                h = chunk.of(self._hidden).to(spec.dtype)
                tanh = None if tanhs is None else tanhs[: len(chunk)]
                z = self.head.logits(h, memory[: len(chunk)], tanh)
                take(chunk, z)
                if self._makes_gradients:
                    self._add(chunk, h, z, tanh)

    def _add(self, chunk: Chunk, hidden: Tensor, grad: Tensor, tanh: Tensor | None) -> None:
        """Add what follows from the gradient of a chunk's logits."""
        ignored = self._ignored_of(chunk)
        if tanh is not None:
            self.head.before_softcap_(grad, tanh)
            if ignored is not None:
                grad.masked_fill_(ignored, 0)
        if self._of_hidden is not None:
            self._of_hidden.add(chunk, grad, self.head.weight)
        if self._of_weight is not None:
            counted = hidden if ignored is None else hidden.masked_fill(ignored, 0)
            self._of_weight.add(grad, counted)
        if self._of_bias is not None:
            self._of_bias[: grad.shape[1]] += grad.sum(0, dtype=self._of_bias.dtype)

    def _ignored_of(self, chunk: Chunk) -> Tensor | None:
        """(n, 1), of rows that may hold NaN, which would be NaN times their gradient of 0 too."""
        if self.specs.head.skip_ignored:
            return None
        return is_ignored(chunk.of(self._target), self.specs.rows.ignore_index).unsqueeze(-1)

    def gradients(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of hidden state, weight and bias, in their dtypes; without elements if not needed."""
        of_hidden, of_weight, of_bias = _no_gradients(self._hidden)
        shards = self.specs.rows.shards
        if self._of_hidden is not None:
            of_hidden = self._of_hidden.result
            if shards is not None:
                add_up_(of_hidden, shards.group)
        if self._of_weight is not None:
            of_weight = self._of_weight.finish(self._given_weight.dtype)
        if self._of_bias is not None and self._given_bias is not None:
            of_bias = self._of_bias.to(self._given_bias.dtype)
        return of_hidden, of_weight, of_bias


def _row_outputs(hidden: Tensor, target: Tensor, specs: Specs) -> RowOutputs:
    """The results of rows, 0 for those that are skipped."""
    nothing = hidden.new_empty((*target.shape, 1), dtype=specs.head.dtype)
    request = specs.rows.outline._replace(write_grad=False, probs=False)
    outputs = empty_outputs(nothing, target, request)
    if specs.head.skip_ignored:
        for name in ROW_OUTPUTS:
            getattr(outputs, name).zero_()
    return outputs


def _rows_of(row_scale: Tensor, chunk: Chunk) -> Tensor:
    return row_scale if row_scale.dim() == 0 else chunk.of(row_scale)


def _no_gradients(like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return like.new_empty(0), like.new_empty(0), like.new_empty(0)


def _empty_gradients(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, spec: HeadSpec, wanted: bool
) -> tuple[Tensor, ...]:
    inputs = (hidden, weight, bias)
    needed = (spec.needs_hidden, spec.needs_weight, spec.needs_bias)
    return tuple(
        torch.empty_like(tensor) if wanted and need and tensor is not None else nothing
        for tensor, need, nothing in zip(inputs, needed, _no_gradients(hidden), strict=True)
    )
