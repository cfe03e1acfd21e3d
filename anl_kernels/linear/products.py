"""Matrix products of the projection, a chunk of rows at a time. No losses."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from anl_kernels.linear.chunks import Chunk

_BLOCK_BYTES = 8 << 20  # of a product that is rounded before it is added: small beside a chunk


class Projector:
    """``softcap * tanh((hidden @ weight.T + bias) / softcap) / temperature``, over chunks.

    Args:
        weight: (K, D).
        bias: (K,) or None.
        softcap: 0 for none.
        dtype: of the products.
        temperature: 1 for none. The derivative is without it, which is a factor of rows.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        softcap: float,
        dtype: torch.dtype,
        temperature: float = 1.0,
    ) -> None:
        self.weight = weight.to(dtype)
        self.bias = None if bias is None else bias.to(dtype)
        self.softcap = softcap
        self.temperature = temperature

    def logits(self, hidden: Tensor, out: Tensor, tanh: Tensor | None) -> Tensor:
        """Logits of (n, D) rows, written to ``out``, (n, K).

        With a softcap the hyperbolic tangents go to ``tanh``, for :meth:`before_softcap_`.
        """
        if self.bias is None:
            torch.mm(hidden, self.weight.t(), out=out)
        else:
            torch.addmm(self.bias, hidden, self.weight.t(), out=out)
        if self.softcap:
            tanh = out if tanh is None else tanh
            torch.div(out, self.softcap, out=tanh).tanh_()
            torch.mul(tanh, self.softcap, out=out)
        return out if self.temperature == 1 else out.div_(self.temperature)

    def before_softcap_(self, grad: Tensor, tanh: Tensor) -> None:
        """Replace the gradient of the logits by that of what the softcap was given."""
        torch.ops.aten.tanh_backward.grad_input(grad, tanh, grad_input=grad)


class HiddenGradient:
    """The gradient of the hidden state, (N, D); rows that no chunk has get 0."""

    def __init__(self, hidden: Tensor, all_rows: bool) -> None:
        self.result = torch.empty_like(hidden) if all_rows else torch.zeros_like(hidden)

    def add(self, chunk: Chunk, grad: Tensor, weight: Tensor) -> None:
        """Put what follows from a chunk's gradient of the logits, (n, K)."""
        if isinstance(chunk.rows, slice) and self.result.dtype == grad.dtype:
            torch.mm(grad, weight, out=self.result[chunk.rows])
        else:
            chunk.put(self.result, (grad @ weight).to(self.result.dtype))


class WeightGradient:
    """The gradient of the weight, (rows, D): a sum over chunks, in the dtype of ``result``.

    Args:
        result: to be filled.
        num_classes: how many of its rows are classes; the others get 0.
    """

    def __init__(self, result: Tensor, num_classes: int) -> None:
        self.result = result
        result[num_classes:].zero_()
        self._of_classes = result[:num_classes]
        self._begun = False

    def finish(self, dtype: torch.dtype) -> Tensor:
        """The sum, 0 if there was nothing to add, in the dtype of the weight."""
        if not self._begun:
            self._of_classes.zero_()
        return self.result.to(dtype)

    def add(self, grad: Tensor, hidden: Tensor) -> None:
        """Add ``grad.T @ hidden``, of (n, K) and (n, D)."""
        if not self._begun:
            self._first(grad.t(), hidden)
        elif self._of_classes.dtype == grad.dtype:
            self._of_classes.addmm_(grad.t(), hidden)
        elif _widens(grad, self._of_classes):
            dtype = self._of_classes.dtype
            torch.addmm(self._of_classes, grad.t(), hidden, out_dtype=dtype, out=self._of_classes)
        else:
            for rows, product in _blocks(self._of_classes, grad, hidden):
                rows.add_(product)
        self._begun = True

    def _first(self, factor: Tensor, hidden: Tensor) -> None:
        if self._of_classes.dtype == factor.dtype:
            torch.mm(factor, hidden, out=self._of_classes)
        elif _widens(factor, self._of_classes):
            torch.mm(factor, hidden, out_dtype=self._of_classes.dtype, out=self._of_classes)
        else:
            for rows, product in _blocks(self._of_classes, factor.t(), hidden):
                rows.copy_(product)


def _widens(factor: Tensor, result: Tensor) -> bool:
    """Whether there is a product of such factors, in 16 bits, with such a result, in float32."""
    return factor.is_cuda and torch.version.hip is None and result.dtype == torch.float32


def _blocks(result: Tensor, grad: Tensor, hidden: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """``grad.T @ hidden`` by blocks of classes, each with where it belongs in the result.

    A product is rounded to its factors' dtype before it is added to a wider sum; in blocks it takes
    little memory meanwhile.
    """
    block = max(1, _BLOCK_BYTES // max(1, hidden.shape[1] * hidden.element_size()))
    for first in range(0, grad.shape[1], block):
        classes = slice(first, first + block)
        yield result[classes], grad[:, classes].t() @ hidden
