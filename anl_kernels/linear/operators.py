"""The operators ``torch.ops.anl_kernels.linear_*``: projection and loss over chunks of rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from anl_kernels.distributed.collectives import add_up_
from anl_kernels.interface import (
    REQUEST_SCHEMA,
    RowOutputs,
    RowRequest,
    empty_outputs,
    scaled_loss,
)
from anl_kernels.labels import is_ignored
from anl_kernels.linear.chunks import Chunk, chunks_of
from anl_kernels.linear.products import HiddenGradient, Projector, WeightGradient
from anl_kernels.operators import fake, operator
from anl_kernels.rows.operators import WHERE_SCHEMA, Where


class Projection(NamedTuple):
    """What an operator is told of the projection to logits, behind the request of rows."""

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
    temperature: float = 1.0
    """What the logits are divided by, after the softcap."""

    def needing(
        self, hidden: Tensor | None, weight: Tensor | None, bias: Tensor | None
    ) -> Projection:
        """The same with the gradients that these need now."""

        def needed(tensor: Tensor | None) -> bool:
            return torch.is_grad_enabled() and tensor is not None and tensor.requires_grad

        return self._replace(
            needs_hidden=needed(hidden), needs_weight=needed(weight), needs_bias=needed(bias)
        )

    @property
    def gradients(self) -> list[str]:
        """Those that are needed, by name."""
        needs = (self.needs_hidden, self.needs_weight, self.needs_bias)
        return [name for name, needed in zip(GRADIENTS, needs, strict=True) if needed]


_PROJECTION_SCHEMA = (
    "float softcap, int chunk_bytes, bool skip_ignored, ScalarType dtype, ScalarType sum_dtype, "
    "int num_classes, bool needs_hidden, bool needs_weight, bool needs_bias, float temperature"
)
SPECS_SCHEMA = f"{REQUEST_SCHEMA}, {WHERE_SCHEMA}, {_PROJECTION_SCHEMA}"
_TENSORS = "Tensor hidden, Tensor weight, Tensor? bias, Tensor target, Tensor row_scale"
GRADIENTS = ("hidden", "weight", "bias")
NUMBERS = ("row_losses", "saved", "term_losses", "lse", "p_y", "argmax", "denominators")
"""The fields of RowOutputs that are numbers of rows."""


class Specs(NamedTuple):
    """The parts of an operator's arguments that are no tensors."""

    request: RowRequest
    """The outputs of rows; "grad" stands for the gradients that the projection needs."""
    where: Where
    projection: Projection

    @property
    def flat(self) -> tuple[Any, ...]:
        """As they follow an operator's tensors."""
        return *self.request, *self.where, *self.projection

    @classmethod
    def of(cls, args: tuple[Any, ...]) -> Specs:
        """Out of their flat form."""
        rows = len(RowRequest._fields)
        after = rows + len(Where._fields)
        return cls(RowRequest(*args[:rows]), Where(*args[rows:after]), Projection(*args[after:]))

    @property
    def numbers(self) -> list[str]:
        """The numbers of rows that are wanted."""
        return [name for name in self.request.names if name in NUMBERS]

    @property
    def gradients(self) -> list[str]:
        """The gradients that come with the loss, in the one-pass mode."""
        return self.projection.gradients if self.request.wants("grad") else []

    def split(self, made: Sequence[Tensor]) -> tuple[Tensor, RowOutputs, dict[str, Tensor]]:
        """The loss, the numbers of rows and the gradients among what the operator returned."""
        after = 1 + len(self.numbers)
        rows = RowOutputs(**dict(zip(self.numbers, made[1:after], strict=True)))
        return made[0], rows, dict(zip(self.gradients, made[after:], strict=True))


@operator(f"linear_loss({_TENSORS}, Tensor? term_weights, {SPECS_SCHEMA}) -> Tensor[]")
def linear_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    row_scale: Tensor,
    term_weights: Tensor | None,
    *args: Any,
) -> list[Tensor]:
    """Loss of the rows that the projection makes of (N, D) ``hidden``, times ``row_scale``.

    Then the numbers of rows and the gradients that the specs want.
    """
    specs = Specs.of(args)
    gradients = specs.request.wants("grad")
    made_of_rows = {"row_losses", *specs.numbers} | ({"grad"} if gradients else set())
    request = specs.request.asking(*made_of_rows, reduce=False, inplace=True)
    walk = Walk(hidden, weight, bias, target, specs, gradients)
    outputs = _row_outputs(hidden, target, specs)

    def take(chunk: Chunk, z: Tensor) -> None:
        y, scale = chunk.of(target), walk.scale_of(row_scale, chunk)
        made = walk.kernels.row_loss(z, y, scale, term_weights, request)
        for into, rows in zip(outputs, made, strict=True):
            if into is not None:
                chunk.put(into, rows)

    walk.over_chunks(take)
    loss = scaled_loss(outputs.row_losses, target, row_scale, specs.request)
    rows = [getattr(outputs, name) for name in specs.numbers]
    made = walk.gradients()
    return [loss, *rows, *(made[name] for name in specs.gradients)]


@fake("linear_loss")
def _(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    row_scale: Tensor,
    *args: Any,
) -> list[Tensor]:
    specs = Specs.of(args[1:])
    outputs = _row_outputs(hidden, target, specs)
    loss = scaled_loss(outputs.row_losses, target, row_scale, specs.request)
    rows = [getattr(outputs, name) for name in specs.numbers]
    return [loss, *rows, *empty_gradients(specs.gradients, hidden, weight, bias)]


@operator(f"linear_grad({_TENSORS}, Tensor saved, {SPECS_SCHEMA}) -> Tensor[]")
def linear_grad(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    row_scale: Tensor,
    saved: Tensor,
    *args: Any,
) -> list[Tensor]:
    """The gradients out of what ``linear_loss`` saved; the logits are computed once more.

    ``row_scale`` multiplies a row's gradient before it is rounded.
    """
    specs = Specs.of(args)
    walk = Walk(hidden, weight, bias, target, specs, gradients=True)

    def take(chunk: Chunk, z: Tensor) -> None:
        y, scale = chunk.of(target), walk.scale_of(row_scale, chunk)
        walk.kernels.row_grad_into(z, z, y, scale, chunk.of(saved), specs.request)

    walk.over_chunks(take)
    made = walk.gradients()
    return [made[name] for name in specs.projection.gradients]


@fake("linear_grad")
def _(hidden: Tensor, weight: Tensor, bias: Tensor | None, *args: Any) -> list[Tensor]:
    gradients = Specs.of(args[3:]).projection.gradients
    return empty_gradients(gradients, hidden, weight, bias)


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
        spec = specs.projection
        self.specs = specs
        self.kernels = specs.where.load()
        classes = slice(spec.num_classes)
        here = weight[classes], None if bias is None else bias[classes]
        self.projector = Projector(*here, spec.softcap, spec.dtype, spec.temperature)
        self._hidden, self._given_weight, self._given_bias = hidden, weight, bias
        self._target, self._makes_gradients = target, gradients
        self._chunks = chunks_of(
            target,
            specs.request.ignore_index,
            spec.skip_ignored,
            self._row_bytes(),
            spec.chunk_bytes,
        )
        self._of_hidden: HiddenGradient | None = None
        self._of_weight: WeightGradient | None = None
        self._of_bias: Tensor | None = None
        if gradients:
            self._make_room(target.numel())

    def _room(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return self.kernels.empty_like_rows(self._hidden.new_empty((), dtype=dtype).expand(shape))

    def _make_room(self, num_rows: int) -> None:
        spec, weight, bias = self.specs.projection, self._given_weight, self._given_bias
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

    def scale_of(self, row_scale: Tensor, chunk: Chunk) -> Tensor:
        """What the gradient of a chunk's logits is to be multiplied by, for :meth:`over_chunks`."""
        scale = row_scale if row_scale.dim() == 0 else chunk.of(row_scale)
        temperature = self.specs.projection.temperature
        return scale if temperature == 1 else scale / temperature

    def _row_bytes(self) -> int:
        """Of a row of logits, on the rank that has most of them: all ranks walk in step."""
        shards = self.specs.where.shards
        classes = self.specs.projection.num_classes if shards is None else max(shards.sizes)
        return max(1, classes) * self.specs.projection.dtype.itemsize

    def over_chunks(self, take: Callable[[Chunk, Tensor], None]) -> None:
        """Hand over each chunk's (n, K) logits; where gradients are made, theirs replaces them."""
        if not self._chunks:
            return
        spec = self.specs.projection
        most = max(map(len, self._chunks))
        memory = self._room((most, spec.num_classes), spec.dtype)
        tanhs = torch.empty_like(memory) if spec.softcap and self._makes_gradients else None
        # A backward pass may run where the forward pass did not: spec.dtype says all of it.
        with torch.no_grad(), torch.autocast(memory.device.type, enabled=False):
            for chunk in self._chunks:
                h = chunk.of(self._hidden).to(spec.dtype)
                tanh = None if tanhs is None else tanhs[: len(chunk)]
                z = self.projector.logits(h, memory[: len(chunk)], tanh)
                take(chunk, z)
                if self._makes_gradients:
                    self._add(chunk, h, z, tanh)

    def _add(self, chunk: Chunk, hidden: Tensor, grad: Tensor, tanh: Tensor | None) -> None:
        """Add what follows from the gradient of a chunk's logits."""
        ignored = self._ignored_of(chunk)
        if tanh is not None:
            self.projector.before_softcap_(grad, tanh)
            if ignored is not None:
                grad.masked_fill_(ignored, 0)
        if self._of_hidden is not None:
            self._of_hidden.add(chunk, grad, self.projector.weight)
        if self._of_weight is not None:
            counted = hidden if ignored is None else hidden.masked_fill(ignored, 0)
            self._of_weight.add(grad, counted)
        if self._of_bias is not None:
            self._of_bias[: grad.shape[1]] += grad.sum(0, dtype=self._of_bias.dtype)

    def _ignored_of(self, chunk: Chunk) -> Tensor | None:
        """(n, 1), of rows that may hold NaN, which would be NaN times their gradient of 0 too."""
        if self.specs.projection.skip_ignored:
            return None
        return is_ignored(chunk.of(self._target), self.specs.request.ignore_index).unsqueeze(-1)

    def gradients(self) -> dict[str, Tensor]:
        """Those that are needed, in the dtypes of what they are of."""
        made: dict[str, Tensor] = {}
        shards = self.specs.where.shards
        if self._of_hidden is not None:
            made["hidden"] = self._of_hidden.result
            if shards is not None:
                add_up_(made["hidden"], shards.group)
        if self._of_weight is not None:
            made["weight"] = self._of_weight.finish(self._given_weight.dtype)
        if self._of_bias is not None and self._given_bias is not None:
            made["bias"] = self._of_bias.to(self._given_bias.dtype)
        return made


def _row_outputs(hidden: Tensor, target: Tensor, specs: Specs) -> RowOutputs:
    """The numbers of rows, 0 for those that are skipped."""
    logits = hidden.new_empty((*target.shape, 1), dtype=specs.projection.dtype)
    outputs = empty_outputs(logits, target, specs.request.asking("row_losses", *specs.numbers))
    if specs.projection.skip_ignored:
        for numbers in outputs:
            if numbers is not None:
                numbers.zero_()
    return outputs


def empty_gradients(
    names: list[str], hidden: Tensor, weight: Tensor, bias: Tensor | None
) -> list[Tensor]:
    """What a fake kernel answers."""
    inputs: dict[str, Any] = {"hidden": hidden, "weight": weight, "bias": bias}
    return [torch.empty_like(inputs[name]) for name in names]
