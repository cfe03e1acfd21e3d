"""The operators of a backend, as the compiler, ``torch.func`` and opcheck see them.

An extension defines those of its backend in C++ (csrc/operators.h); :func:`define` does for a
backend in Python. :func:`complete` adds what is Python's in either case.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from anl_kernels.backends.batching import register_rules
from anl_kernels.interface import REQUEST_SCHEMA, Kernels, RowRequest, empty_outputs
from anl_kernels.layout import empty_like_rows
from anl_kernels.operators import register_fake

ROWS = "Tensor logits, Tensor target, Tensor row_scale"
SCHEMAS = {
    "row_loss": f"({ROWS}, Tensor? term_weights, {REQUEST_SCHEMA}) -> Tensor[]",
    "row_loss_": (
        f"({ROWS.replace('Tensor', 'Tensor(a!)', 1)}, Tensor? term_weights, {REQUEST_SCHEMA})"
        f" -> Tensor[]"
    ),
    "row_grad": f"({ROWS}, Tensor saved, {REQUEST_SCHEMA}) -> Tensor",
    "row_grad_into": f"(Tensor(a!) grad, {ROWS}, Tensor saved, {REQUEST_SCHEMA}) -> ()",
    "softmax": "(Tensor logits) -> Tensor",
    "softmax_backward": "(Tensor upstream, Tensor probs) -> Tensor",
    "scale_": "(Tensor(a!) tensor, Tensor factor) -> ()",
}
"""What autograd calls of a backend."""


def namespace_of(backend: str) -> str:
    """Where the operators of a backend are, in ``torch.ops``."""
    return f"anl_kernels_{backend}"


def define(backend: str, kernels: Kernels) -> None:
    """Make operators of the functions of a backend in Python."""
    library = torch.library.Library(namespace_of(backend), "DEF")
    _libraries.append(library)

    def row_loss(*args: Any) -> list[Tensor]:
        logits, target, row_scale, weights, *request = args
        outputs = kernels.row_loss(logits, target, row_scale, weights, RowRequest(*request))
        return [tensor for tensor in outputs if tensor is not None]

    def row_loss_(logits: Tensor, *args: Any) -> list[Tensor]:
        torch.autograd.graph.increment_version(logits)
        return row_loss(logits, *args)

    def row_grad(logits: Tensor, *args: Any) -> Tensor:
        grad = empty_like_rows(logits)
        row_grad_into(grad, logits, *args)
        return grad

    def row_grad_into(grad: Tensor, *args: Any) -> None:
        torch.autograd.graph.increment_version(grad)
        logits, target, row_scale, saved, *request = args
        kernels.row_grad_into(grad, logits, target, row_scale, saved, RowRequest(*request))

    def scale_(tensor: Tensor, factor: Tensor) -> None:
        torch.autograd.graph.increment_version(tensor)
        kernels.scale_(tensor, factor)

    implementations = {
        "row_loss": row_loss,
        "row_loss_": row_loss_,
        "row_grad": row_grad,
        "row_grad_into": row_grad_into,
        "softmax": kernels.softmax,
        "softmax_backward": kernels.softmax_backward,
        "scale_": scale_,
    }
    for name, schema in SCHEMAS.items():
        library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        library.impl(name, implementations[name], "CompositeExplicitAutograd")
        # The Functions are differentiable; without this PyTorch warns that operators are not.
        library.impl(name, torch.library.fallthrough_kernel, "Autograd")


_libraries: list[torch.library.Library] = []  # one that is freed takes its operators with it


eager: dict[str, Any] = {}
"""By backend, where eager code finds its operators: bindings that spend less time on a call."""


def complete(backend: str, bindings: Any = None) -> None:
    """Say what the operators of a backend answer where there is no data, and within vmap.

    ``bindings`` has them as functions, which ``torch.compile`` cannot trace.
    """
    namespace = namespace_of(backend)
    eager[backend] = bindings or getattr(torch.ops, namespace)
    library = torch.library.Library(namespace, "FRAGMENT")
    _libraries.append(library)
    for name, answer in _FAKES.items():
        register_fake(f"{namespace}::{name}", answer, library)
    register_rules(namespace, library)


def _row_loss(
    logits: Tensor, target: Tensor, row_scale: Tensor, term_weights: Tensor | None, *request: Any
) -> list[Tensor]:
    outputs = empty_outputs(logits, target, RowRequest(*request))
    return [tensor for tensor in outputs if tensor is not None]


def _like_first(tensor: Tensor, *_: Any) -> Tensor:
    return empty_like_rows(tensor)


def _like_second(_: Tensor, tensor: Tensor) -> Tensor:
    return empty_like_rows(tensor)


def _nothing(*_: Any) -> None:
    return None


_FAKES: dict[str, Callable[..., Any]] = {
    "row_loss": _row_loss,
    "row_loss_": _row_loss,
    "row_grad": _like_first,
    "row_grad_into": _nothing,
    "softmax": _like_first,
    "softmax_backward": _like_second,
    "scale_": _nothing,
}
